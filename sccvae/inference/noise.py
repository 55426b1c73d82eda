"""Noise of posterior samples: the noise of a cell depends on the seed and the cell's number, not on other cells."""

import numpy as np
import torch

BLOCK = 256  # cells per random stream


class Noise:
    """Standard normal numbers for cells and samples, for chunks of any size in ascending order.

    A chunk may begin or end within a block: numbers of the block are kept for the next chunk.

    Parameters
    ----------
    seed
        A whole number.
    n
        Numbers per cell and sample.
    like
        A tensor with the dtype and device of the numbers.
    """

    def __init__(self, seed: int, n: int, like: torch.Tensor):
        self.seed, self.n = int(seed) % 2**64, n
        self.generator, self.dtype = torch.Generator(like.device), like.dtype
        self.kept: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, rows: slice, sample: int) -> torch.Tensor:
        """Return the numbers of the cells numbered `rows`, (cells, n)."""
        parts = []
        for block in range(rows.start // BLOCK, -(-rows.stop // BLOCK)):
            begin, end = block * BLOCK, (block + 1) * BLOCK
            numbers = self.kept.pop((block, sample), None)
            if numbers is None:
                numbers = self._block(block, sample)
            if end > rows.stop:
                self.kept[(block, sample)] = numbers
            parts.append(numbers[max(rows.start - begin, 0) : rows.stop - begin])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _block(self, block: int, sample: int) -> torch.Tensor:
        words = np.random.SeedSequence((self.seed, sample, block)).generate_state(1, np.uint64)
        self.generator.manual_seed(int(words[0]) >> 1)
        size = (BLOCK, self.n)
        return torch.randn(size, generator=self.generator, device=self.generator.device, dtype=self.dtype)


def streams(rng: np.random.Generator):
    """Return a function from the number of a part to a random generator, independent of the other parts."""
    seed = int(rng.integers(2**62))
    return lambda part: np.random.default_rng([seed, part])
