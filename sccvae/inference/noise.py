"""Noise of posterior draws: that of a cell depends on the seed and on its number, not on which cells come with it."""

import numpy as np
import torch

BLOCK = 256  # cells whose noise is one stream


class Noise:
    """Standard normal numbers for cells and samples, in any chunks as long as these are in order.

    A chunk may begin or end within a block: what the next one needs of it is kept.

    Parameters
    ----------
    seed
        A whole number.
    n
        Numbers for each cell in a sample.
    like
        A tensor of their type, on their device.
    """

    def __init__(self, seed: int, n: int, like: torch.Tensor):
        self.seed, self.n = int(seed) % 2**64, n
        self.generator, self.dtype = torch.Generator(like.device), like.dtype
        self.kept: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, rows: slice, sample: int) -> torch.Tensor:
        """Those of the cells numbered `rows`, (cells, n)."""
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
    """Function: number of a part -> a generator of its own, the same however long the other parts draw."""
    seed = int(rng.integers(2**62))
    return lambda part: np.random.default_rng([seed, part])
