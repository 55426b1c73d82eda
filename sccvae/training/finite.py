"""Losses and weights that are not finite end a run, with advice."""

import numpy as np
import torch


class TrainingError(RuntimeError):
    """The loss was not finite; the model holds the weights of the last good epoch.

    Examples
    --------
    >>> import sccvae
    >>> adata = sccvae.simulate.simulate(300, 50, seed=0)
    >>> model = sccvae.SCCVAE(adata, batch_key="batch")
    >>> try:
    ...     model.train(max_epochs=3, learning_rate=1e30, gradient_clip=float("inf"))
    ... except sccvae.TrainingError:
    ...     print("Use a smaller learning rate.")
    Use a smaller learning rate.
    """


def check_finite(
    losses: list[torch.Tensor], weights: list[torch.nn.Parameter], groups: list[np.ndarray], epoch: int, rate: float
) -> None:
    """Raise for the first loss that is not finite. Once per epoch: a check per step would make a GPU wait."""
    bad = np.flatnonzero(~np.isfinite(values := torch.stack(losses).cpu().numpy()))
    extremes = torch.stack([extreme for w in weights for extreme in torch.aminmax(w)])  # NaN where a weight has one
    if len(bad) == 0 and torch.isfinite(extremes).all():
        return
    step = int(bad[0]) if len(bad) else len(values) - 1
    what = f"The loss became {values[step]}" if len(bad) else "The weights became not finite"
    cells = np.sort(groups[step])
    named = f"{', '.join(map(str, cells[:5]))}{', ...' if len(cells) > 5 else ''}"
    where = f"in epoch {epoch}, step {step + 1} of {len(values)}, on the {len(cells)} cells numbered {named}"
    raise TrainingError(advice(f"{what} {where}", rate))


def advice(what: str, rate: float) -> str:
    """Say what usually helps."""
    return (
        f"{what}. The model holds the weights of the last good epoch. Usual causes: a learning rate that is too high "
        f"(it was {rate:.2g}; pass a smaller learning_rate), a few cells with extreme counts (look at "
        "adata.obs['total_counts'] after sc.pp.calculate_qc_metrics), or continuous covariates with outliers."
    )
