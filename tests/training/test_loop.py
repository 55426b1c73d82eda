"""Training: the same every time, safe to interrupt, and never without a reason when it fails."""

import math
import random
import time

import numpy as np
import pytest
import torch
from helpers import (
    LIKELIHOOD_NAMES,
    N_CELLS,
    TRAIN,
    VALIDATION,
    a_plan,
    run,
    same_state,
    small_counts,
    small_vae,
    state_of,
    support_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sccvae.data.counts import Counts, shuffled, split
from sccvae.kernels.reference import FUSED, PLAIN
from sccvae.modules.vae import VAE
from sccvae.training import loop
from sccvae.training.gradients import DROPOUT_WAIT
from sccvae.training.loop import Progress, TrainingError, fit, mean_terms
from sccvae.training.optimizer import Adam


def rows_of(progress, split):
    return [row for row in progress.rows if row["split"] == split]


def elbo_of(vae, counts, cells=VALIDATION, batch_size=32, seed=0):
    reconstruction, kl_z, kl_l = mean_terms(vae, counts, cells, batch_size, seed).tolist()
    return reconstruction - kl_z - kl_l


@pytest.fixture(scope="module")
def counts():
    return small_counts(N_CELLS, n_batches=2)


def overfitting_run(counts, **choices):
    """10 cells, no dropout, a wide network: the best held-out epoch comes early."""
    vae = small_vae(counts, dropout_rate=0.0, n_hidden=64, gene_likelihood="nb", library="observed")
    options = {"max_epochs": 30, "batch_size": 5, "kl_warmup": 0.0, **choices}
    return vae, run(vae, counts, train=np.arange(10), **options)


@pytest.fixture(scope="module")
def overfitted(counts):
    return overfitting_run(counts)


def in_training(vae, monkeypatch, action):
    """Let `action(call, elbo)` replace what the `call`-th forward pass in train mode (from 1) returns."""
    forward, calls = vae.forward, []

    def replaced(x, noise):
        if not vae.training:
            return forward(x, noise)
        calls.append(x)
        return action(len(calls), forward(x, noise))

    monkeypatch.setattr(vae, "forward", replaced)
    return calls


def judged(monkeypatch):
    """Number of an epoch -> the weights that were judged at its end."""
    close, at = loop._close_epoch, {}

    def replaced(vae, held_out, progress, epoch, *rest):
        at[epoch] = state_of(vae)
        return close(vae, held_out, progress, epoch, *rest)

    monkeypatch.setattr(loop, "_close_epoch", replaced)
    return at


# ----------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("n_steps", [1, 2, 3, 7, 10, 1000])
@pytest.mark.parametrize("kl_warmup", [0.0, 0.3, 0.9, 1.0])
def test_kl_weight_rises_to_one_within_the_run_whatever_its_length(n_steps, kl_warmup):
    weights = [a_plan(kl_warmup=kl_warmup).kl_weight(step, n_steps) for step in range(n_steps)]
    assert weights[-1] == 1
    assert all(0 < w <= 1 for w in weights)
    assert weights == sorted(weights)


def test_kl_weight_rises_linearly_over_its_share_of_the_run():
    weights = [a_plan(kl_warmup=0.3).kl_weight(step, 1000) for step in range(1000)]
    np.testing.assert_allclose(weights[:300], np.arange(1, 301) / 300, atol=0.01)
    np.testing.assert_allclose(np.diff(weights[:299]), weights[0], rtol=1e-9)
    assert weights[301:] == [1.0] * 699
    assert [a_plan(kl_warmup=0.0).kl_weight(step, 5) for step in range(5)] == [1.0] * 5


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(n_steps=st.integers(1, 3000), learning_rate=st.floats(1e-6, 1))
def test_learning_rate_is_one_cycle_within_its_bounds(n_steps, learning_rate):
    rates = np.array([a_plan(learning_rate=learning_rate).rate(step, n_steps) for step in range(n_steps)])
    assert (rates > 0.0099 * learning_rate).all() if n_steps < 10 else rates[-1] > 0.0099 * learning_rate
    assert (rates > 0).all()
    assert rates.max() <= learning_rate * (1 + 1e-12)
    top = int(rates.argmax())
    assert top <= max(0.1 * n_steps + 1, 1)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    if n_steps > 1:
        assert rates.max() > 0.9 * learning_rate
    if n_steps > 100:
        assert rates[-1] < 0.011 * learning_rate


def test_schedules_are_what_the_optimizer_and_the_loss_get(counts, monkeypatch):
    vae = small_vae(counts)
    rates, weights = [], []
    in_training(vae, monkeypatch, lambda call, elbo: Spy(elbo, weights))
    numbers = Adam.numbers
    monkeypatch.setattr(Adam, "numbers", lambda self, rate: (rates.append(rate), numbers(self, rate))[1])
    run(vae, counts, max_epochs=5)
    expected, n_steps = a_plan(max_epochs=5), 15  # 70 cells in 3 minibatches of at most 32
    assert rates == [expected.rate(step, n_steps) for step in range(n_steps)]
    assert weights == [expected.kl_weight(step, n_steps) for step in range(n_steps)]
    assert weights[0] < 0.3
    assert weights[-1] == 1


class Spy:
    """An Elbo that notes the KL weight that it is asked for."""

    def __init__(self, elbo, weights):
        self.elbo, self.weights = elbo, weights

    def loss(self, kl_weight):
        self.weights.append(kl_weight)
        return self.elbo.loss(kl_weight)

    def __getattr__(self, name):
        return getattr(self.elbo, name)

    def __getitem__(self, terms):
        return self.elbo[terms]


def test_several_draws_for_each_cell_estimate_the_same_gradient_with_less_noise(counts, monkeypatch):
    x, vae = counts.minibatch(np.arange(30)), small_vae(counts, dropout_rate=0.0)
    vae.decoder.logits.weight.data.mul_(5)  # so that z matters

    def gradients(n_draws):
        found = []
        for seed in range(60):
            vae.zero_grad()
            vae(x.repeated(n_draws), torch.Generator().manual_seed(seed)).loss().backward()
            found.append(vae.encoder.z.weight.grad.clone())
        return torch.stack(found)

    one, eight = gradients(1), gradients(8)
    ratio = float(eight.var(0).sum() / one.var(0).sum())
    assert 0.08 < ratio < 0.2  # 1/8, but for the noise of 60 draws
    assert (one.mean(0) - eight.mean(0)).norm() < 4 * (one.var(0).sum() / 60).sqrt()
    seen = []
    monkeypatch.setattr(VAE, "forward", lambda self, x, noise, f=VAE.forward: (seen.append(x), f(self, x, noise))[1])
    fit(vae, counts, TRAIN, VALIDATION[:0], a_plan(max_epochs=1, n_draws=3), Progress(), seed=0, progress_bar=False)
    assert [x.n_cells for x in seen] == [72, 69, 69]
    assert torch.equal(seen[0].dense()[0::3], seen[0].dense()[2::3])
    assert torch.equal(seen[0].log_size[0::3], seen[0].log_size[1::3])


@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["plain", "fused"])
def test_the_drop_out_head_waits_for_its_share_of_the_run(counts, kernels, monkeypatch):
    vae, at_zero = small_vae(counts, kernels=kernels), []
    move = Adam.move

    def spy(self, *numbers):
        move(self, *numbers)
        at_zero.append(not vae.decoder.dropout.weight.any())

    monkeypatch.setattr(Adam, "move", spy)
    run(vae, counts, max_epochs=5)
    assert at_zero == [k < DROPOUT_WAIT * len(at_zero) for k in range(len(at_zero))]
    assert 0 < sum(at_zero) < len(at_zero)


def test_a_run_of_one_step_has_the_full_kl_weight(counts):
    progress = run(small_vae(counts), counts, max_epochs=1, batch_size=100)
    assert progress.rows[0]["kl_weight"] == 1


# ------------------------------------------------------------------------------------------------- split, minibatches


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    train_size=st.floats(0.05, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_split_is_stratified_by_batch(sizes, train_size, seed):
    batch = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    train, validation = split(batch, train_size, np.random.default_rng(seed))
    np.testing.assert_array_equal(np.sort(np.concatenate([train, validation])), np.arange(len(batch)))
    assert (np.diff(train) > 0).all()
    assert (np.diff(validation) > 0).all()
    for code, size in enumerate(sizes):
        n_train = np.count_nonzero(batch[train] == code)
        assert n_train >= 1
        assert n_train == 1 or abs(n_train - size * train_size) <= 0.5 + 1e-9
        assert size > 1 or n_train == 1


def test_split_is_random_but_seeded():
    batch = np.zeros(200, dtype=np.int64)
    first, again, other = (split(batch, 0.9, np.random.default_rng(seed))[1] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(first) == len(other) == 20
    assert set(first) != set(other)
    assert len(split(batch, 1.0, np.random.default_rng(0))[1]) == 0


@pytest.mark.parametrize("train_size", [0, -0.1, 1.01, math.nan])
def test_split_refuses_what_is_no_share(train_size):
    with pytest.raises(ValueError, match=r"train_size is .*\(0, 1\]"):
        split(np.zeros(10, dtype=np.int64), train_size, np.random.default_rng(0))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(n_cells=st.integers(1, 400), batch_size=st.integers(1, 130), seed=st.integers(0, 2**32 - 1))
def test_an_epoch_covers_every_cell_once_in_nearly_equal_minibatches(n_cells, batch_size, seed):
    cells = 1000 + 3 * np.arange(n_cells)
    minibatches = shuffled(cells, batch_size, np.random.default_rng(seed))
    sizes = [len(m) for m in minibatches]
    np.testing.assert_array_equal(np.sort(np.concatenate(minibatches)), cells)
    assert len(sizes) == math.ceil(n_cells / batch_size)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_epochs_are_shuffled_and_cover_the_training_cells_only(counts, monkeypatch):
    vae, seen, minibatches = small_vae(counts), [], Counts.minibatches

    def spy(self, groups):
        seen.extend(groups)
        return minibatches(self, groups)

    monkeypatch.setattr(Counts, "minibatches", spy)
    run(vae, counts, max_epochs=3)
    epochs = [np.concatenate(seen[k : k + 3]) for k in (0, 3, 6)]
    assert len(seen) == 9
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), TRAIN)
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


# ----------------------------------------------------------------------------------------------------------- the runs


@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["plain", "fused"])
@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_two_fits_give_the_same_weights_to_the_bit(name, kernels):
    counts = small_counts(N_CELLS, support=support_of(name), n_batches=2, covariates=True)
    results = []
    for seed in (1, 1, 2):
        vae = small_vae(counts, gene_likelihood=name, kernels=kernels)
        results.append((run(vae, counts, seed=seed), state_of(vae)))
    (first, weights), (again, same), (_, other) = results
    assert same_state(weights, same)
    without_clock = [[{k: v for k, v in row.items() if k != "seconds"} for row in p.rows] for p in (first, again)]
    assert without_clock[0] == without_clock[1]
    assert not same_state(weights, other)


def test_going_on_draws_other_noise_than_the_first_run(counts):
    """The same weights and seed, but a later first epoch: not a repetition."""
    first, later = small_vae(counts), small_vae(counts)
    run(first, counts, max_epochs=1)
    progress = run(later, counts, max_epochs=1, first_epoch=11)
    assert not same_state(state_of(first), state_of(later))
    assert [row["epoch"] for row in progress.rows] == [11, 11]
    assert progress.best_epoch == 11


def test_going_on_never_ends_with_weights_worse_than_it_began_with(counts, overfitted):
    """At a rate that ruins the model: the earlier run's best weights come back, after 3 epochs of patience."""
    vae = small_vae(counts, n_hidden=64, dropout_rate=0.0, gene_likelihood="nb", library="observed")
    vae.load_state_dict(overfitted[0].state_dict())
    before, elbo = state_of(vae), elbo_of(vae, counts)
    progress = Progress(first_epoch=31, best_epoch=overfitted[1].best_epoch)
    rough = a_plan(max_epochs=9, learning_rate=1.0, early_stopping=True, patience=3)
    fit(vae, counts, np.arange(10), VALIDATION, rough, progress, seed=0, progress_bar=False)
    assert max(row["elbo"] for row in rows_of(progress, "validation")) < elbo
    assert same_state(state_of(vae), before)
    assert progress.best_epoch == overfitted[1].best_epoch
    assert [row["epoch"] for row in rows_of(progress, "training")] == [31, 32, 33]
    assert progress.stopped == "early"


def test_global_random_state_is_left_alone(counts):
    vae = small_vae(counts, dropout_rate=0.5)
    state = lambda: (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate())  # noqa: E731, NPY002
    before = state()
    run(vae, counts)
    assert state() == before


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_training_improves_the_held_out_elbo(name):
    """By nats per cell, on cells of two kinds; and z is what improves it: its KL is not zero."""
    counts, train, validation = small_counts(300, 40, support=support_of(name)), np.arange(250), np.arange(250, 300)
    vae = small_vae(counts, gene_likelihood=name)
    vae.decoder.logits.weight.data.mul_(0.1)  # before training: little more than the mean profile
    before = elbo_of(vae, counts, validation)
    progress = run(vae, counts, train=train, validation=validation, max_epochs=15)
    after = elbo_of(vae, counts, validation)
    assert after > before + 1
    assert after == pytest.approx(progress.best_elbo, rel=1e-5)
    assert mean_terms(vae, counts, validation, 32, 0)[1] > 0.3


def test_history_has_a_complete_row_for_each_epoch_and_split(counts):
    started = time.perf_counter()
    progress = run(small_vae(counts), counts, max_epochs=3)
    passed = time.perf_counter() - started
    assert [(row["epoch"], row["split"]) for row in progress.rows] == [
        (epoch, split) for epoch in (1, 2, 3) for split in ("training", "validation")
    ]
    numbers = {"elbo", "reconstruction", "kl_z", "kl_l", "kl_weight", "learning_rate", "seconds"}
    for row in progress.rows:
        assert set(row) == {"epoch", "split", *numbers}
        assert all(isinstance(row[name], float) and math.isfinite(row[name]) for name in numbers)
        assert row["elbo"] == pytest.approx(row["reconstruction"] - row["kl_z"] - row["kl_l"], rel=1e-6)
        assert row["kl_z"] > 0
        assert row["kl_l"] > 0
    assert 0 < sum(row["seconds"] for row in progress.rows) <= passed
    assert progress.stopped == "finished"
    last, n_steps = progress.rows[-1], 9
    assert last["kl_weight"] == a_plan().kl_weight(n_steps - 1, n_steps)
    assert last["learning_rate"] == a_plan().rate(n_steps - 1, n_steps)


def test_training_row_is_the_mean_over_cells_of_that_epochs_minibatches(counts, monkeypatch):
    vae, values = small_vae(counts), []
    in_training(vae, monkeypatch, lambda call, elbo: values.append(elbo.value.detach()) or elbo)
    progress = run(vae, counts, max_epochs=2)
    for epoch in (0, 1):
        assert rows_of(progress, "training")[epoch]["elbo"] == pytest.approx(
            float(torch.cat(values[3 * epoch : 3 * epoch + 3]).mean()), rel=1e-5
        )


def test_mean_terms_are_means_over_cells_and_repeatable(counts):
    vae = small_vae(counts, dropout_rate=0.5)
    every, some = np.arange(len(counts)), np.array([40, 3, 77, 12])
    terms = mean_terms(vae, counts, every, 32, 5)
    assert torch.equal(terms, mean_terms(vae.train(), counts, every, 32, 5))  # without dropout
    assert not torch.equal(terms, mean_terms(vae, counts, every, 32, 6))
    assert torch.equal(mean_terms(vae, counts, some, 3, 5), mean_terms(vae, counts[some], np.arange(4), 3, 5))
    with torch.no_grad():
        elbo = vae(counts.minibatch(slice(None)), torch.Generator().manual_seed(5))
    expected = [float(t.mean()) for t in (elbo.reconstruction, elbo.kl_z, elbo.kl_l)]
    np.testing.assert_allclose(mean_terms(vae, counts, every, 1000, 5), expected, rtol=1e-5)
    np.testing.assert_allclose(terms[1:], expected[1:], rtol=1e-4)  # KLs do not depend on the draws


# ----------------------------------------------------------------------------------------- best epoch, early stopping


def test_weights_of_the_best_epoch_are_restored(counts, overfitted):
    vae, progress = overfitted
    held_out = [row["elbo"] for row in rows_of(progress, "validation")]
    assert progress.best_epoch == 1 + int(np.argmax(held_out))
    assert 1 < progress.best_epoch < 15
    assert held_out[-1] < max(held_out) - 1  # so that the last weights would not pass below
    assert progress.best_elbo == max(held_out)
    assert elbo_of(vae, counts, batch_size=5) == pytest.approx(max(held_out), abs=1e-3)
    assert not vae.training


def test_early_stopping_stops_after_its_patience(counts, overfitted):
    _, finished = overfitted
    vae, progress = overfitting_run(counts, early_stopping=True, patience=4)
    assert progress.stopped == "early"
    epochs = [row["epoch"] for row in rows_of(progress, "validation")]
    assert epochs[-1] == progress.best_epoch + 4
    assert epochs[-1] < 30
    assert finished.stopped == "finished"
    assert rows_of(finished, "validation")[-1]["epoch"] == 30
    assert elbo_of(vae, counts, batch_size=5) == pytest.approx(progress.best_elbo, abs=1e-3)
    held_out = [row["elbo"] for row in rows_of(progress, "validation")]
    assert held_out == [row["elbo"] for row in rows_of(finished, "validation")][: len(held_out)]


def test_early_stopping_counts_from_the_first_epoch_of_a_later_run(counts):
    vae = small_vae(counts)
    progress = run(vae, counts, max_epochs=3, first_epoch=101, early_stopping=True, patience=5)
    assert progress.stopped == "finished"
    assert [row["epoch"] for row in rows_of(progress, "training")] == [101, 102, 103]


def test_without_held_out_cells_the_last_epoch_counts_and_nothing_stops_early(counts, monkeypatch):
    """Although its ELBO, of training cells, is not the best: 9 nats are taken from it, which have no gradient."""
    vae, states = small_vae(counts), []

    def action(call, elbo):
        states.append(state_of(vae))
        return elbo._replace(reconstruction=elbo.reconstruction - 9) if call > 3 else elbo

    in_training(vae, monkeypatch, action)
    none = np.array([], dtype=np.int64)
    progress = run(vae, counts, validation=none, max_epochs=6, early_stopping=True, patience=1)
    assert {row["split"] for row in progress.rows} == {"training"}
    assert len(progress.rows) == 6
    assert progress.rows[-1]["elbo"] < progress.rows[0]["elbo"]
    assert progress.best_epoch == 6
    assert progress.best_elbo == progress.rows[-1]["elbo"]
    assert not any(same_state(state_of(vae), state) for state in states)  # a step on from the last of them
    assert progress.stopped == "finished"


# ---------------------------------------------------------------------------------------------------- gradient clipping


def test_clipping_to_nearly_nothing_keeps_the_weights_where_they_were(counts):
    moved = {}
    for clip in (1e-9, 50.0):
        vae = small_vae(counts)
        start = state_of(vae)
        run(vae, counts, gradient_clip=clip)
        moved[clip] = max(float((t - start[name]).abs().max()) for name, t in vae.state_dict().items())
    assert moved[1e-9] < 1e-4 < 1e-2 < moved[50.0]


def test_weight_decay_shrinks_the_weights(counts):
    norms = {}
    for decay in (0.0, 3.0):
        vae = small_vae(counts)
        run(vae, counts, weight_decay=decay, max_epochs=10, validation=np.array([], dtype=np.int64))
        norms[decay] = vae.encoder.first.weight.norm().item()
    assert norms[3.0] < 0.9 * norms[0.0]


def test_a_precise_prior_keeps_the_weights_of_the_heads_small_and_no_others(counts):
    norms = {}
    for precision in (0.0, 1000.0):
        vae = small_vae(counts, weight_precision=precision)
        run(vae, counts, max_epochs=20, validation=np.array([], dtype=np.int64))
        norms[precision] = [w.norm().item() for w in (vae.decoder.logits.weight, vae.decoder.dropout.weight)]
        norms[precision].append(vae.encoder.first.weight.norm().item())
    (logits, dropout, encoder), (small_logits, small_dropout, same_encoder) = norms.values()
    assert small_logits < 0.5 * logits
    assert small_dropout < 0.5 * dropout
    assert same_encoder == pytest.approx(encoder, rel=0.2)


@pytest.mark.parametrize("n_cells", [20, 40])
def test_the_prior_of_the_weights_weighs_as_much_as_all_cells_together(counts, monkeypatch, n_cells):
    decays = []
    monkeypatch.setattr(loop, "Adam", lambda w, **k: decays.append(k["decays"]) or Adam(w, **k))
    vae = small_vae(counts, weight_precision=60.0)
    run(vae, counts, train=np.arange(n_cells), max_epochs=1, weight_decay=0.25)
    assert decays == [[0.25 + p / n_cells for p in vae.precisions()]]
    assert set(decays[0]) == {0.25, 0.25 + 60 / n_cells}


def test_an_epoch_is_judged_by_the_average_of_the_weights(counts, monkeypatch):
    """Of all steps so far, the present weights going on afterwards."""
    vae, at, seen = small_vae(counts), judged(monkeypatch), []
    weights, expected = list(vae.parameters()), [w.detach().clone() for w in vae.parameters()]
    move = Adam.move

    def spy(self, *numbers):
        for w, last in zip(self.weights, seen[-1] if seen else expected, strict=True):
            assert torch.equal(w, last)
        move(self, *numbers)
        seen.append([w.detach().clone() for w in self.weights])

    monkeypatch.setattr(Adam, "move", spy)
    run(vae, counts, max_epochs=2)
    for number, values in enumerate(seen, start=1):
        kept = (1 + number) / (10 + number)
        expected = [kept * e + (1 - kept) * v for e, v in zip(expected, values, strict=True)]
    names = [name for name, _ in vae.named_parameters()]
    assert len(names) == len(weights)
    for name, e in zip(names, expected, strict=True):
        torch.testing.assert_close(at[2][name], e, rtol=1e-4, atol=1e-6)
    assert not torch.equal(seen[-1][0], at[2][names[0]])


# ------------------------------------------------------------------------------------------------ losses not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_epoch_step_and_cells_and_rolls_back(counts, monkeypatch, value):
    vae, end_of_epoch, seen, minibatches = small_vae(counts), judged(monkeypatch), [], Counts.minibatches

    def break_down(call, elbo):
        return elbo._replace(reconstruction=elbo.reconstruction * value) if call == 8 else elbo

    def spy(self, groups):
        seen.extend(groups)
        return minibatches(self, groups)

    in_training(vae, monkeypatch, break_down)
    monkeypatch.setattr(Counts, "minibatches", spy)
    with pytest.raises(TrainingError) as raised:
        run(vae, counts)  # 3 steps an epoch: the 8th is the 2nd of epoch 3
    message = str(raised.value)
    cells = np.sort(seen[7])
    assert f"became {value} in epoch 3, step 2 of 3" in message
    assert f"on the {len(cells)} cells numbered {', '.join(map(str, cells[:5]))}, ..." in message
    assert "learning rate" in message
    assert same_state(state_of(vae), end_of_epoch[2])
    assert not vae.training
    assert np.isfinite(elbo_of(vae, counts))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_after_the_last_step_of_an_epoch_are_seen(counts, monkeypatch, value):
    vae, end_of_epoch = small_vae(counts), judged(monkeypatch)

    def break_down(call, elbo):
        if call == 6:  # `data`: what the gradient needs was kept before
            vae.decoder.logits.weight.data[3, 2] = value
        return elbo

    in_training(vae, monkeypatch, break_down)
    with pytest.raises(TrainingError, match=r"^The weights became not finite in epoch 2, step 3 of 3, on the "):
        run(vae, counts)
    assert same_state(state_of(vae), end_of_epoch[1])


def test_a_failure_keeps_the_last_good_epoch_even_when_an_earlier_one_was_better(counts, monkeypatch):
    """So that the user can look at where the run went wrong; the held-out ELBO falls by 10 nats a step here."""
    vae, at = small_vae(counts), judged(monkeypatch)

    def action(call, elbo):
        return elbo._replace(kl_z=elbo.kl_z * math.nan) if call == 8 else elbo

    calls = in_training(vae, monkeypatch, action)
    forward = vae.forward

    def worse_and_worse(x, noise):
        elbo = forward(x, noise)
        return elbo if vae.training else elbo._replace(reconstruction=elbo.reconstruction - 10 * len(calls))

    monkeypatch.setattr(vae, "forward", worse_and_worse)
    progress = Progress()
    with pytest.raises(TrainingError, match="last good epoch"):
        fit(vae, counts, TRAIN, VALIDATION, a_plan(), progress, seed=0, progress_bar=False)
    held_out = [row["elbo"] for row in rows_of(progress, "validation")]
    assert len(held_out) == 2
    assert held_out[0] > held_out[1]
    assert same_state(state_of(vae), at[2])
    assert not same_state(at[1], at[2])
    assert progress.best_epoch == 2


def test_a_loss_that_is_not_finite_in_the_first_epoch_leaves_the_initial_weights(counts, monkeypatch):
    vae = small_vae(counts)
    before = state_of(vae)
    in_training(vae, monkeypatch, lambda call, elbo: elbo._replace(kl_z=elbo.kl_z * math.nan) if call == 1 else elbo)
    with pytest.raises(TrainingError, match="epoch 1, step 1 of 3"):
        run(vae, counts)
    assert same_state(state_of(vae), before)


def test_few_cells_are_all_named(counts, monkeypatch):
    vae = small_vae(counts)
    in_training(vae, monkeypatch, lambda call, elbo: elbo._replace(kl_z=elbo.kl_z * math.nan))
    with pytest.raises(TrainingError, match=r"on the 3 cells numbered 5, 8, 13\. The model"):
        run(vae, counts, train=np.array([5, 8, 13]))


def test_a_huge_learning_rate_raises_and_leaves_finite_weights(counts):
    vae = small_vae(counts)
    with pytest.raises(TrainingError, match="pass a smaller learning_rate"):
        run(vae, counts, learning_rate=1e30)
    assert all(torch.isfinite(t).all() for t in vae.state_dict().values())
    assert np.isfinite(elbo_of(vae, counts))


@pytest.mark.parametrize("held_out", [True, False], ids=["held-out cells", "no held-out cells"])
@pytest.mark.parametrize("bad_step", [6, 12], ids=["within the run", "at its very end"])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights_that_are_kept(counts, monkeypatch, held_out, bad_step):
    """The loss of the step is still finite, as when its gradient overflows; the step is the last of its epoch."""
    vae, calls = small_vae(counts), []
    forward = vae.forward

    def counted(x, noise):
        calls.extend([1] * vae.training)
        return forward(x, noise)

    monkeypatch.setattr(vae, "forward", counted)
    spoil = lambda gradient: gradient * math.inf if len(calls) == bad_step else gradient  # noqa: E731
    vae.decoder.logits.bias.register_hook(spoil)
    validation = VALIDATION if held_out else np.array([], dtype=np.int64)
    with pytest.raises(TrainingError):
        run(vae, counts, validation=validation)  # 4 epochs of 3 steps
    assert all(torch.isfinite(t).all() for t in vae.state_dict().values())
    assert np.isfinite(elbo_of(vae, counts))


def test_a_held_out_elbo_that_is_not_finite_is_not_passed_over(counts):
    """One step that ruins the model is the whole run: without an error the user would hold an untrained model."""
    vae = small_vae(counts)
    with pytest.raises(TrainingError):
        run(vae, counts, max_epochs=1, batch_size=100, learning_rate=1e30)
    assert np.isfinite(elbo_of(vae, counts))


# -------------------------------------------------------------------------------------------------------- interruption


def interrupt_at(bad_call):
    def action(call, elbo):
        if call == bad_call:
            raise KeyboardInterrupt
        return elbo

    return action


def test_an_interruption_keeps_the_best_epoch_so_far(counts, monkeypatch):
    vae = small_vae(counts)
    in_training(vae, monkeypatch, interrupt_at(11))  # in epoch 4
    progress = run(vae, counts, max_epochs=50)
    assert progress.stopped == "interrupted"
    held_out = [row["elbo"] for row in rows_of(progress, "validation")]
    assert [row["epoch"] for row in rows_of(progress, "training")] == [1, 2, 3]
    assert len(held_out) == 3
    assert progress.best_epoch == 1 + int(np.argmax(held_out))
    assert elbo_of(vae, counts) == pytest.approx(max(held_out), abs=1e-3)
    assert not vae.training


def test_an_interruption_equals_a_shorter_look_at_the_same_run(counts, monkeypatch):
    """Interrupted in epoch 3 without held-out cells, the weights are those after epoch 2, to the bit."""
    none, at = np.array([], dtype=np.int64), judged(monkeypatch)
    vae = small_vae(counts)
    in_training(vae, monkeypatch, interrupt_at(9))
    progress = run(vae, counts, validation=none)
    assert progress.stopped == "interrupted"
    assert progress.best_epoch == 2
    assert same_state(state_of(vae), at[2])


def test_an_interruption_in_the_first_epoch_leaves_the_initial_weights(counts, monkeypatch):
    vae = small_vae(counts)
    before = state_of(vae)
    in_training(vae, monkeypatch, interrupt_at(2))
    progress = run(vae, counts)
    assert progress.stopped == "interrupted"
    assert progress.best_epoch == 0
    assert progress.rows == []
    assert same_state(state_of(vae), before)
    assert not vae.training


def test_other_errors_pass_through_and_leave_the_best_weights(counts, monkeypatch):
    vae = small_vae(counts)

    def action(call, elbo):
        if call == 8:
            raise MemoryError("no more of it")
        return elbo

    in_training(vae, monkeypatch, action)
    with pytest.raises(MemoryError, match="no more of it"):
        run(vae, counts)
    assert not vae.training
    assert np.isfinite(elbo_of(vae, counts))
