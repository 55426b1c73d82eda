"""Training loop over epochs and minibatches: schedules, early stopping, history."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from sccvae.data.counts import Counts
from sccvae.data.gpu.device_loading import chunk_of, loading_of
from sccvae.kernels.parallel import alone
from sccvae.modules.latent_terms import LabelledPrior
from sccvae.modules.vae import VAE
from sccvae.training.checkpoint import Checkpoints, State, Weights, weights_of
from sccvae.training.finite import TrainingError, advice, check_finite
from sccvae.training.gradients import DROPOUT_WAIT, Precision
from sccvae.training.optimizer import Adam
from sccvae.training.steps import steps


@dataclass(frozen=True)
class Plan:
    """How to train; the defaults are written in `SCCVAE.train`, where users see them."""

    max_epochs: int
    batch_size: int
    learning_rate: float
    kl_warmup: float  # fraction of the run over which the KL weight of z rises to 1
    early_stopping: bool
    patience: int  # epochs without a better held-out ELBO before the run stops
    gradient_clip: float
    weight_decay: float
    n_draws: int  # of z and l for each cell at each step
    precision: Precision  # of the decoder's products

    def kl_weight(self, step: int, n_steps: int) -> float:
        """Weight of KL(q(z|x) || p(z)) at a step: rises linearly to 1 within the run, whatever its length."""
        warmup = min(self.kl_warmup * n_steps, n_steps - 1)
        return 1.0 if step >= warmup else (step + 1) / (warmup + 1)

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate at a step: one cycle, a short linear rise and a cosine fall to a hundredth."""
        rise = max(0.1 * n_steps, 1.0)
        if step < rise:
            return self.learning_rate * (step + 1) / (rise + 1)
        fallen = (step - rise) / max(n_steps - rise, 1.0)
        return self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * fallen)))


@dataclass
class Progress:
    """Result of a run: the rows of the history, and the best epoch."""

    first_epoch: int = 1
    best_epoch: int = 0  # of this run, or of an earlier one that it goes on from
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_elbo: float = -math.inf
    stopped: Literal["finished", "early", "interrupted"] = "finished"
    loading: str = ""  # on a GPU: where the counts are, "resident" there or "streamed" to it

    def record(
        self, epoch: int, split: str, terms: torch.Tensor, columns: Sequence[str], schedule: dict, seconds: float
    ):
        """Add a row of means per cell of the split `training` or `validation`, in nats."""
        named = dict(zip(columns, terms.tolist(), strict=True))
        row = {"epoch": epoch, "split": split, "elbo": _elbo(terms), **named, **schedule, "seconds": seconds}
        self.rows.append(row)


@alone()
def fit(
    vae: VAE,
    counts: Counts,
    train: np.ndarray,
    validation: np.ndarray,
    plan: Plan,
    progress: Progress,
    *,
    seed: int,
    progress_bar: bool = True,
    checkpoints: Checkpoints | None = None,
    processes: Any = None,
) -> None:
    """Maximise the ELBO of the cells `train`; leave the averaged weights of the best epoch in `vae`.

    The best epoch is that of the highest held-out ELBO with full KL weight; without validation cells, the last.
    Ctrl-C ends the run early in the same way. With `checkpoints`, the state is written every so many steps. If they
    hold a state, the run goes on from it. `batch_size` is that of each of several `processes` (`training.processes`).

    Raises
    ------
    TrainingError
        The loss became NaN or infinite; `vae` then holds the weights of the last good epoch.
    """
    device, rng = vae.device, np.random.default_rng([seed, first_epoch := progress.first_epoch])
    noise = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    batch_size, mine = plan.batch_size, list
    if processes is not None:
        batch_size, mine = plan.batch_size * processes.size, processes.parts
        noise.manual_seed(processes.seed(seed, first_epoch))
    trained = [(w, prior) for w, prior in zip(vae.parameters(), vae.precisions(), strict=True) if w.requires_grad]
    decays = [plan.weight_decay + precision / len(train) for _, precision in trained]
    room = 0 if processes is None else processes.room(len(vae.columns), len(trained))
    rows = None if vae.moving is None else dict.fromkeys(range(len(trained)), vae.moving)
    optimizer = Adam([w for w, _ in trained], clip=plan.gradient_clip, decays=decays, room=room, rows=rows)
    none, start = torch.zeros(len(vae.columns), device=device), weights_of(vae)
    state = State(first_epoch, rng, noise, optimizer, best=start, last_good=start, total=none)
    if checkpoints is not None:
        checkpoints.restore(state, progress, processes)
    minibatches, take_step = steps(vae, counts, optimizer, noise, plan.precision, plan.n_draws, processes)
    progress.loading = loading_of(minibatches)
    n_steps, n_drawn = plan.max_epochs * -(-len(train) // batch_size), len(train) * plan.n_draws
    chunk_size = plan.batch_size if device.type == "cpu" else chunk_of(counts.n_genes, device)
    held_out = partial(mean_terms, vae, counts, validation, chunk_size, seed, processes) if len(validation) else None
    if progress.best_epoch and held_out and state.step == 0:
        progress.best_elbo = _elbo(held_out())
    epochs = range(state.epoch, first_epoch + plan.max_epochs)
    try:
        for epoch in (bar := tqdm(epochs, desc="sccvae", unit="epoch", leave=False, disable=not progress_bar or None)):
            state.begin(epoch)
            if processes is not None:
                processes.align(optimizer)
            vae.train()
            groups = counts.shuffled(train, batch_size, rng)
            for x in minibatches(mine(groups[len(state.losses) :])):
                numbers = optimizer.numbers(plan.rate(state.step, n_steps))
                kl_weight, waits = plan.kl_weight(state.step, n_steps), state.step < DROPOUT_WAIT * n_steps
                state.add(*take_step(x, kl_weight, numbers, waits))
                if checkpoints is not None:
                    checkpoints.offer(state, progress, processes)
            last = state.step - 1
            schedule = {"kl_weight": plan.kl_weight(last, n_steps), "learning_rate": plan.rate(last, n_steps)}
            check_finite(state.losses, optimizer.weights, groups, epoch, schedule["learning_rate"])
            with optimizer.averaged():  # it is what is judged and kept
                terms = state.total / n_drawn
                state.last_good = _close_epoch(vae, held_out, progress, epoch, terms, schedule, state.started)
            state.best = state.last_good if progress.best_epoch == epoch else state.best
            state.end()
            bar.set_postfix_str(f"ELBO {progress.rows[-1]['elbo']:.1f} nats per cell", refresh=False)
            if plan.early_stopping and epoch - max(progress.best_epoch, first_epoch - 1) >= plan.patience:
                progress.stopped = "early"
                break
        if checkpoints is not None:
            checkpoints.finish(state, progress, processes)
    except KeyboardInterrupt:
        progress.stopped = "interrupted"
    except TrainingError:
        state.best = state.last_good
        progress.best_epoch = progress.rows[-1]["epoch"] if progress.rows else progress.best_epoch
        raise
    finally:
        vae.load_state_dict(state.best)
        vae.zero_grad()
        vae.eval()


def _close_epoch(
    vae: VAE,
    held_out: Callable[[], torch.Tensor] | None,
    progress: Progress,
    epoch: int,
    terms: torch.Tensor,
    schedule: dict[str, float],
    started: float,
) -> Weights:
    """Score the held-out cells, write the history, note the best epoch; return the weights."""
    trained = time.perf_counter()
    judged = held_out() if held_out else None
    if judged is not None and not torch.isfinite(judged).all():
        raise TrainingError(advice(f"The held-out ELBO became not finite in epoch {epoch}", schedule["learning_rate"]))
    progress.record(epoch, "training", terms, vae.columns, schedule, trained - started)
    if judged is not None:
        columns = (*vae.columns[:3], "label_accuracy")[: len(judged)]
        progress.record(epoch, "validation", judged, columns, schedule, time.perf_counter() - trained)
    elbo = progress.rows[-1]["elbo"]
    if elbo > progress.best_elbo or judged is None:
        progress.best_epoch, progress.best_elbo = epoch, elbo
    return weights_of(vae)


@torch.no_grad()
def mean_terms(
    vae: VAE, counts: Counts, cells: np.ndarray, chunk_size: int, seed: int, processes: Any = None
) -> torch.Tensor:
    """Mean over `cells` of reconstruction, KL of z and KL of l, (3,), without dropout; the same noise at every call.

    Of a model with labels, (4,): also the fraction of labelled cells whose label is the most probable; 1 if none is.
    """
    vae.eval()
    if processes is not None:
        cells, seed = processes.part(cells), processes.seed(seed)
    noise = torch.Generator(vae.device).manual_seed(seed)
    # Sums: small arrays kept from each chunk would lie where the next one's large ones were, and memory would grow.
    total, n = torch.zeros(3, device=vae.device), 0
    labelled = torch.zeros(2 if vae.architecture.n_labels else 0, device=vae.device)  # rightly; all
    for _, x in counts.chunks(chunk_size, cells):
        x = x.to(vae.device)
        terms = torch.stack(vae(x, noise)[:3])
        total, n = total + terms.sum(1), n + terms.shape[1]
        if len(labelled):
            assert isinstance(vae.prior, LabelledPrior)
            labelled = labelled + vae.prior.count_of_right(vae.encoder(x)[0].mean, x.labels)
    if processes is not None:
        sums = processes.summed(torch.cat([labelled, total, total.new_tensor([n])]))
        labelled, total, n = sums.split([len(labelled), 3, 1])
    if not len(labelled):
        return total / n
    return torch.cat([total / n, (labelled[:1] + (labelled[1:] == 0)) / labelled[1:].clamp_min(1)])


def _elbo(terms: torch.Tensor) -> float:
    reconstruction, kl_z, kl_l, *_ = terms.tolist()
    return reconstruction - kl_z - kl_l
