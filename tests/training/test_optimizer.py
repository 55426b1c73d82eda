"""Adam takes the steps of torch's, and clips to the norm it is given."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import move

from sccvae.training.optimizer import MEMORY, Adam

SHAPES = [(300, 128), (7,), (1, 3), (128, 300)]


def weights_of(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def give_gradients(weights, step, scale=1.0):
    generator = torch.Generator().manual_seed(100 + step)
    for w in weights:
        w.grad = scale * torch.randn(w.shape, generator=generator).to(w.dtype)


def torch_adam(weights, decays):
    groups = [{"params": [w], "weight_decay": d} for w, d in zip(weights, decays, strict=True)]
    return torch.optim.Adam(groups, eps=1e-4)


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("decays", [None, [0.1, 0.0, 5.0, 0.3]])
@pytest.mark.parametrize("clip", [1e9, 3.0])
def test_steps_are_those_of_torch(clip, decays, n_threads):
    """Against torch in float64, with a learning rate that changes from step to step."""
    ours, reference = weights_of(), weights_of(torch.float64)
    adam, expected = Adam(ours, clip=clip, decays=decays), torch_adam(reference, decays or [0.0] * 4)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        for step in range(20):
            rate = 0.1 / (1 + step)
            give_gradients(ours, step, scale=2.0)
            for w, r in zip(ours, reference, strict=True):
                r.grad = w.grad.double()
            torch.nn.utils.clip_grad_norm_(reference, clip)
            set_rate(expected, rate)
            expected.step()
            move(adam, rate)
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
    for w, r in zip(ours, reference, strict=True):
        np.testing.assert_allclose(w.detach(), r.detach(), rtol=2e-5, atol=2e-6)


def test_other_weights_take_the_same_steps():
    ours, reference = weights_of(torch.float64), weights_of(torch.float64)
    decays = [0.1, 0.0, 5.0, 0.3]
    adam, expected = Adam(ours, clip=3.0, decays=decays), torch_adam(reference, np.array(decays, np.float32).tolist())
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(reference, step)
        torch.nn.utils.clip_grad_norm_(reference, 3.0)
        set_rate(expected, 0.01)
        expected.step()
        move(adam, 0.01)
    for w, r in zip(ours, reference, strict=True):
        np.testing.assert_allclose(w.detach(), r.detach(), rtol=1e-10, atol=1e-13)


def test_clipping_scales_the_gradients_as_a_whole():
    """Adam's first step hides the scale, all but for eps: gradients far below it move the weights in proportion."""
    moved = []
    for clip in (1e-6, 2e-6):
        weights = weights_of()
        start = [w.detach().clone() for w in weights]
        give_gradients(weights, 0, scale=1e3)
        norm = torch.linalg.vector_norm(torch.cat([w.grad.flatten() for w in weights]))
        gradients = [w.grad.clone() for w in weights]
        move(Adam(weights, clip=clip, eps=1.0), 1e3)
        for w, s, g in zip(weights, start, gradients, strict=True):
            np.testing.assert_allclose(s - w.detach(), 1e3 * clip / norm * g, rtol=0.05, atol=3e-7)
        moved.append(sum(float((w.detach() - s).abs().sum()) for w, s in zip(weights, start, strict=True)))
    assert moved[1] > 1.8 * moved[0] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_without_gradient_stays(dtype):
    weights = weights_of(dtype)
    give_gradients(weights, 0)
    weights[1].grad = None
    start = [w.detach().clone() for w in weights]
    adam = Adam(weights, clip=1.0)
    move(adam, 0.1)
    assert [bool(torch.equal(w, s)) for w, s in zip(weights, start, strict=True)] == [False, True, False, False]
    assert weights[1].grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_rests_while_it_has_no_gradient(dtype):
    """From the start, as if its gradients were zero; later without momentum. The others do not see it in the norm."""
    ours, reference = weights_of(dtype), weights_of(dtype)
    adam, expected = Adam(ours, clip=3.0), Adam(reference, clip=3.0)
    for step in range(9):
        give_gradients(ours, step)
        give_gradients(reference, step)
        if step < 2 or 4 <= step < 7:
            ours[0].grad = None
            reference[0].grad.zero_()
        move(adam, 0.1)
        move(expected, 0.1)
        if step < 4:
            np.testing.assert_array_equal(ours[0].detach(), reference[0].detach())
        if step == 4:
            kept = ours[0].detach().clone()
        if 4 < step < 7:
            np.testing.assert_array_equal(ours[0].detach(), kept)
        assert all(torch.equal(w, r) for w, r in zip(ours[1:], reference[1:], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_gradient_shows_in_the_weights(bad):
    weights = weights_of()
    give_gradients(weights, 0)
    weights[0].grad[0, 0] = bad
    move(Adam(weights, clip=50.0), 0.1)
    assert not torch.isfinite(weights[0]).all()


def test_a_gradient_that_is_not_contiguous():
    ours, reference = weights_of(), weights_of()
    for step in range(2):
        give_gradients(ours, step)
        give_gradients(reference, step)
        ours[0].grad = ours[0].grad.T.contiguous().T
    assert not ours[0].grad.is_contiguous()
    move(Adam(ours, clip=1e9), 0.1)
    move(Adam(reference, clip=1e9), 0.1)
    np.testing.assert_array_equal(ours[0].detach(), reference[0].detach())


def test_training_does_not_import_the_compiler_of_torch():
    code = (
        "import sys, sccvae, torch; m = sccvae.SCCVAE(sccvae.simulate.simulate(200, 50, seed=0), batch_key='batch');"
        "m.train(2, progress_bar=False); m.get_normalized_expression(); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # compiled, and torch's
def test_the_average_forgets_as_it_says(dtype):
    """After many steps, those of the last fifty weigh 1 - MEMORY ** 50; inside `averaged` the weights are it."""
    weights = weights_of(dtype)
    adam, path = Adam(weights, clip=1e9), [[w.detach().clone() for w in weights]]
    for step in range(600):
        give_gradients(weights, step % 7)
        move(adam, 1e-3)
        path.append([w.detach().clone() for w in weights])
    recent = [MEMORY**k * (1 - MEMORY) for k in range(400)]
    with adam.averaged():
        for place, w in enumerate(weights):
            expected = sum(share * path[-1 - k][place] for k, share in enumerate(recent))
            np.testing.assert_allclose(w.detach(), expected, rtol=1e-3, atol=3e-3)
            assert not torch.equal(w, path[-1][place])
    for w, last in zip(weights, path[-1], strict=True):
        assert torch.equal(w, last)


def test_an_error_inside_averaged_gives_the_weights_back():
    weights = weights_of()
    adam = Adam(weights, clip=1e9)
    give_gradients(weights, 0)
    move(adam, 0.1)
    last = [w.detach().clone() for w in weights]
    judged = adam.averaged()
    judged.__enter__()
    assert not torch.equal(weights[0], last[0])
    assert not judged.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    for w, value in zip(weights, last, strict=True):
        assert torch.equal(w, value)


def test_weights_lie_side_by_side_and_outlive_the_moments():
    weights = weights_of()
    before = [w.detach().clone() for w in weights]
    adam = Adam(weights, clip=1.0)
    for w, value in zip(weights, before, strict=True):
        assert torch.equal(w, value)
        assert w.data_ptr() % 64 == weights[0].data_ptr() % 64
    storages = {w.untyped_storage().data_ptr() for w in weights}
    assert len(storages) == 1
    assert weights[0].untyped_storage().nbytes() < 1.01 * 4 * sum(w.numel() for w in weights)
    assert [w.grad is place for w, place in zip(weights, adam.places, strict=True)] == [True] * len(weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [range(2, 3), range(4), range(3, 5)])
def test_rows_of_a_weight_move_as_a_weight_of_their_own_and_the_rest_stays(rows, dtype):
    """Compiled (float32) and in operations of torch."""
    rng = np.random.default_rng(0)
    weights = [torch.nn.Parameter(torch.from_numpy(rng.normal(size=size)).to(dtype)) for size in ((5, 3), (7,))]
    alone = [torch.nn.Parameter(w.detach().clone()) for w in (weights[0][rows.start : rows.stop], weights[1])]
    before = weights[0].detach().clone()
    adam, expected = (
        Adam(weights, clip=0.5, decays=[0.1, 0.2], rows={0: rows}),
        Adam(alone, clip=0.5, decays=[0.1, 0.2]),
    )
    for _ in range(6):
        for w in weights:
            w.grad.copy_(torch.from_numpy(rng.normal(size=w.shape)).to(dtype))
        alone[0].grad.copy_(weights[0].grad[rows.start : rows.stop])
        alone[1].grad.copy_(weights[1].grad)
        move(adam, 0.1)
        move(expected, 0.1)
    some = slice(rows.start, rows.stop)
    torch.testing.assert_close(weights[0][some], alone[0])
    torch.testing.assert_close(weights[1], alone[1])
    kept = torch.ones(5, dtype=torch.bool)
    kept[some] = False
    assert torch.equal(weights[0][kept], before[kept])
    with adam.averaged(), expected.averaged():
        torch.testing.assert_close(weights[0][some], alone[0])
        assert torch.equal(weights[0][kept], before[kept])


def test_the_message_is_the_gradient_with_room_behind_it():
    weights = weights_of()
    optimizer = Adam(weights, clip=1e9, room=5)
    give_gradients(weights, 0)
    optimizer.collect()
    assert optimizer.message[:-5].data_ptr() == optimizer.arrays[1].data_ptr()
    assert len(optimizer.message) == len(optimizer.arrays[1]) + 5 == len(optimizer.arrays[0]) + 5
    place = optimizer.range_of(weights[1])
    torch.testing.assert_close(optimizer.message[place.start :][:7], weights[1].grad)


def test_what_moves_can_be_decided_elsewhere():
    """By other processes: with the gradient in the long array, or not at all."""
    weights, same = weights_of(), weights_of()
    optimizer, other = Adam(weights, clip=1e9), Adam(same, clip=1e9)
    give_gradients(weights, 0)
    give_gradients(same, 0)
    weights[3].grad, same[0].grad = None, None
    optimizer.collect()
    optimizer.places[3].copy_(same[3].grad)
    optimizer.take_along(np.array([False, True, True, True]))
    for each in (optimizer, other):
        move(each, 1e-3)
    for w, expected in zip(weights[1:], same[1:], strict=True):
        torch.testing.assert_close(w, expected)
    torch.testing.assert_close(weights[0], weights_of()[0])
