"""Steps on a device are those of the CPU's plain code; recorded ones are those that are not."""

import numpy as np
import pytest
import torch
from helpers import CPU, CUDA, LIKELIHOOD_NAMES, run, same_state, small_counts, small_vae, state_of, support_of

from sccvae.data.gpu.device_loading import DeviceCounts
from sccvae.kernels.reference import PLAIN, for_device
from sccvae.training import loop, steps
from sccvae.training.optimizer import Adam


def again(work, noise):
    """Stands for a CUDA graph where there is none: does `work` again on the same tensors."""
    return work


def recorded_on_the_cpu(monkeypatch, record=again, most=steps.LARGEST):
    """Let `fit` take steps on the CPU as it takes them on a GPU."""

    def those_of_a_gpu(vae, counts, *choices):
        resident = DeviceCounts(counts, CPU)
        _, step = steps.steps(vae, counts, *choices)
        return resident.cells, steps.recorded(step, resident, choices[1], most)

    monkeypatch.setattr(loop, "steps", those_of_a_gpu)
    monkeypatch.setattr(steps, "cuda_graph", record)


@pytest.mark.parametrize("most", [steps.LARGEST, 10])
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_a_recorded_run_ends_where_a_plain_one_does(name, most, monkeypatch):
    counts = small_counts(90, n_batches=2, support=support_of(name))
    plain, other = (small_vae(counts, gene_likelihood=name, kernels=PLAIN) for _ in range(2))
    expected = run(plain, counts, n_draws=2)
    recorded_on_the_cpu(monkeypatch, most=most)
    found = run(other, counts, n_draws=2)
    for weight, w in zip(other.state_dict().values(), plain.state_dict().values(), strict=True):
        np.testing.assert_allclose(weight, w, rtol=1e-3, atol=1e-5)
    for row, other_row in zip(expected.rows, found.rows, strict=True):
        np.testing.assert_allclose(row["elbo"], other_row["elbo"], rtol=1e-4)


def test_a_step_is_recorded_once_for_each_kind(monkeypatch):
    """70 cells in minibatches of 23 or 24, before and after the drop-out head moves: 4 kinds, 12 steps."""
    kinds = []
    recorded_on_the_cpu(monkeypatch, record=lambda work, noise: kinds.append(work) or work)
    counts = small_counts(90, n_batches=2)
    run(small_vae(counts, kernels=PLAIN), counts)
    assert len(kinds) == 4


@pytest.mark.parametrize("thinning", [0.0, 0.5])
@pytest.mark.parametrize("where", [CUDA])
def test_a_gpu_replays_what_it_would_have_done_anyway(where, thinning, monkeypatch):
    """Every weight to the last bit, the noise being the same."""
    counts, states = small_counts(90, n_batches=2), []
    for record in (steps.cuda_graph, steps.cuda_graph, again):
        monkeypatch.setattr(steps, "cuda_graph", record)
        vae = small_vae(counts, thinning=thinning, kernels=for_device(where)).to(where)
        run(vae, counts, n_draws=2)
        states.append(state_of(vae))
    assert same_state(*states[:2])
    assert same_state(*states[1:])


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
@pytest.mark.parametrize("where", [CUDA])
def test_a_gpu_learns_as_well_as_the_cpu(where, name):
    counts = small_counts(90, n_batches=2, support=support_of(name))
    ends = []
    for device in (CPU, where):
        vae = small_vae(counts, gene_likelihood=name, kernels=for_device(device)).to(device)
        ends.append(run(vae, counts, max_epochs=40, early_stopping=True).best_elbo)
    assert abs(ends[0] - ends[1]) < max(0.03 * abs(ends[0]), 1.0)  # nats: the noise is another one


@pytest.mark.parametrize("recording", [True, False])
@pytest.mark.parametrize("thinning", [0.0, 0.5])
@pytest.mark.parametrize("where", [CUDA])
def test_steps_never_wait_for_the_gpu(where, thinning, recording, monkeypatch):
    """After the recording itself, with every synchronisation an error."""
    if not recording:
        monkeypatch.setattr(steps, "cuda_graph", again)
    counts = small_counts(90, n_batches=2)
    vae = small_vae(counts, thinning=thinning, kernels=for_device(where)).to(where).train()
    optimizer, noise = Adam(list(vae.parameters()), clip=50.0), torch.Generator(where).manual_seed(0)
    minibatches, step = steps.steps(vae, counts, optimizer, noise, "mixed", 1)
    losses = []
    for k, x in enumerate(minibatches(np.split(np.arange(90), 5))):
        torch.cuda.set_sync_debug_mode("default" if k == 1 else "error")
        try:
            losses.append(step(x, 1.0, optimizer.numbers(1e-3), False)[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(losses)).all()
