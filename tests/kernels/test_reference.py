"""The kernels: against mpmath, scipy and torch's own derivatives over the whole range of values, and one another."""

import itertools
import math
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from helpers import COUNT_LIKELIHOODS, minibatch_of, threads
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch.nn.functional import softplus

from sccvae.kernels import reference as module
from sccvae.kernels.reference import FUSED, PLAIN, count_log_likelihood, fused, fused_thin, plain, plain_thin

pytestmark = pytest.mark.loops

THETAS = (1e-6, 1e-3, 0.3, 1.0, 20.0, 1e4, 1e8)
MEANS = (1e-12, 1e-5, 0.1, 3.0, 1e3, 1e7)
COUNTS = (0, 1, 2, 17, 300, 10**6)
DROPOUTS = (-30.0, -3.0, 0.0, 4.0, 30.0)

both_kernels = pytest.mark.parametrize("kernel", [plain, fused], ids=["plain", "fused"])


# --------------------------------------------------------------------------------------------- references of one entry


def exact_log_prob(name, x, log_mean, log_theta=None, dropout=None):
    """log p(x) in mpmath, at the working precision of the caller."""
    m = mpmath.exp(log_mean)
    if name == "poisson":
        return x * log_mean - m - mpmath.loggamma(x + 1)
    theta = mpmath.exp(log_theta)
    log_nb = (
        mpmath.loggamma(x + theta)
        - mpmath.loggamma(theta)
        - mpmath.loggamma(x + 1)
        + theta * mpmath.log(theta / (theta + m))
        + x * mpmath.log(m / (theta + m))
    )
    if name == "nb":
        return log_nb
    lost, kept = 1 / (1 + mpmath.exp(-dropout)), 1 / (1 + mpmath.exp(dropout))
    return mpmath.log(lost + kept * mpmath.exp(log_nb)) if x == 0 else mpmath.log(kept) + log_nb


def rounding_scale(x, log_mean, log_theta):
    """The largest of the numbers that are added up for an entry: rounding errors are proportional to it."""
    m, theta = np.exp(log_mean), np.exp(log_theta)
    terms = [m, x * np.abs(log_mean), x * np.abs(log_theta), special.gammaln(x + 1), 0 * x + 40]
    if np.any(x > 0):
        terms.append(np.where(x > 0, np.abs(special.gammaln(x + theta)), 0))
    return np.max(np.broadcast_arrays(*terms), axis=0)


def one_entry_each(name, x, log_mean, log_theta, dropout, dtype=torch.float64, dropout_cost=0.0, kernel=None):
    """Values of cells with a single gene (so m = l), and gradients in log m, log theta, pi; all of them (cells,)."""
    kinds = {"zinb": (True, True), "nb": (True, False), "poisson": (False, False)}[name]
    log_library = torch.tensor(log_mean, dtype=dtype, requires_grad=True)
    inputs = [torch.tensor(v, dtype=dtype)[:, None].requires_grad_() for v in (log_theta, dropout)]
    heads = [t if used else None for t, used in zip(inputs, kinds, strict=True)]
    minibatch = minibatch_of(np.asarray(x)[:, None], dtype)
    logits = torch.zeros(len(x), 1, dtype=dtype)
    value, _ = count_log_likelihood(minibatch, logits, log_library, *heads, dropout_cost, kernel)
    wanted = [log_library, *(t for t in heads if t is not None)]
    return value.detach(), [g.reshape(-1) for g in torch.autograd.grad(value.sum(), wanted)]


@pytest.fixture(scope="module")
def grid():
    """x, log m, log theta, pi of every combination, (entries,) each."""
    x, mean, theta, dropout = np.array(list(itertools.product(COUNTS, MEANS, THETAS, DROPOUTS))).T
    return x, np.log(mean), np.log(theta), dropout


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_values_equal_mpmath_over_the_whole_range(name, grid):
    value, _ = one_entry_each(name, *grid)
    with mpmath.workdps(50):
        exact = np.array([float(exact_log_prob(name, *map(mpmath.mpf, entry))) for entry in zip(*grid, strict=True)])
    x, log_mean, log_theta, _ = grid
    # 5e-9: torch's softplus is the identity above 20.
    allowed = 5e-9 + 8 * np.finfo(np.float64).eps * rounding_scale(x, log_mean, log_theta)
    np.testing.assert_array_less(np.abs(value.numpy() - exact), allowed + 1e-11 * np.abs(exact))


@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_gradients_equal_mpmath_over_the_whole_range(name, grid):
    every = slice(None, None, 3)  # 420 of 1,260: derivatives in mpmath are slow
    x, log_mean, log_theta, dropout = (column[every] for column in grid)
    _, gradients = one_entry_each(name, x, log_mean, log_theta, dropout)
    orders = [(1, 0, 0), (0, 1, 0), (0, 0, 1)][: len(gradients)]
    m, theta = np.exp(log_mean), np.exp(log_theta)
    eps = np.finfo(np.float64).eps
    # theta * (digamma(x + theta) - digamma(theta)) cancels at a large theta, x - m at equal ones
    allowed = {
        (1, 0, 0): 1e-11 + 8 * eps * (m + x),
        (0, 1, 0): 1e-9 + 16 * eps * (m + x + theta * np.abs(log_theta) * (x > 0)),
        (0, 0, 1): 5e-9 + 0 * m,
    }
    for order, gradient in zip(orders, gradients, strict=True):
        exact = []
        with mpmath.workdps(50):
            for count, *point in zip(x, log_mean, log_theta, dropout, strict=True):
                along = order.index(1)
                slope = mpmath.diff(
                    lambda t, along=along, count=count, point=point: exact_log_prob(
                        name, mpmath.mpf(count), *[t if k == along else mpmath.mpf(v) for k, v in enumerate(point)]
                    ),
                    mpmath.mpf(point[along]),
                )
                exact.append(float(slope))
        exact = np.array(exact)
        np.testing.assert_array_less(
            np.abs(gradient.numpy() - exact), allowed[order] + 1e-9 * np.abs(exact), err_msg=f"{name}, {order}"
        )


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(COUNT_LIKELIHOODS),
    x=st.one_of(st.integers(0, 5), st.integers(0, 10**6)),
    log10_mean=st.floats(-12, 7),
    log10_theta=st.floats(-6, 8),
    dropout=st.floats(-30, 30),
)
def test_any_entry_equals_mpmath(name, x, log10_mean, log10_theta, dropout):
    entry = np.array([x]), np.log(10) * np.array([log10_mean]), np.log(10) * np.array([log10_theta])
    value, _ = one_entry_each(name, *entry, np.array([dropout]))
    with mpmath.workdps(50):
        exact = float(exact_log_prob(name, *(mpmath.mpf(float(v[0])) for v in entry), mpmath.mpf(dropout)))
    allowed = 5e-9 + 8 * np.finfo(np.float64).eps * float(rounding_scale(*entry)[0]) + 1e-11 * abs(exact)
    assert abs(float(value) - exact) <= allowed


@both_kernels
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_single_precision_equals_double_precision_over_the_whole_range(name, kernel, grid):
    x, *reals = grid
    reals = [v.astype(np.float32).astype(np.float64) for v in reals]  # the same inputs for both
    single, single_gradients = one_entry_each(name, x, *reals, dtype=torch.float32, dropout_cost=0.05, kernel=kernel)
    double, double_gradients = one_entry_each(name, x, *reals, dropout_cost=0.05)
    log_mean, log_theta, _ = reals
    eps, m = np.finfo(np.float32).eps, np.exp(log_mean)
    assert torch.isfinite(single).all()
    # A zero's terms are made in float32; a non-zero's in float64, and rounded when log(x!) is taken off.
    scale = np.maximum(m, 40) + special.gammaln(x + 1) + np.where(x > 0, np.abs(double.numpy()), 0)
    np.testing.assert_array_less(
        np.abs(single.double().numpy() - double.numpy()), 8 * eps * scale + 3e-6 * np.abs(double.numpy())
    )
    slope_scales = (m + x, m + x + np.abs(log_theta), 0 * m + 1)
    for ours, exact, slope_scale in zip(single_gradients, double_gradients, slope_scales, strict=False):
        assert torch.isfinite(ours).all()
        error = np.abs(ours.double().numpy() - exact.numpy())
        np.testing.assert_array_less(error, 16 * eps * slope_scale + 1e-4 * np.abs(exact.numpy()) + 1e-30)


@both_kernels
@pytest.mark.parametrize("per_cell", [False, True], ids=["theta per gene", "theta per cell and gene"])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_single_precision_gradients_are_finite_in_cells_of_extreme_genes(name, per_cell, kernel):
    """All at once: every gene's logit is differentiated through a softmax over means from 1e-12 to 1e7."""
    mean, theta, dropout = np.array(list(itertools.product(MEANS, THETAS, DROPOUTS))).T
    for count in COUNTS:
        x = np.full((2, len(mean)), count)
        x[1, ::2] = 0
        logits = torch.tensor(np.log(mean), dtype=torch.float32).expand(2, -1).clone().requires_grad_()
        log_library = torch.full((2,), float(np.log(mean.sum())), requires_grad=True)
        log_theta = torch.tensor(np.log(theta), dtype=torch.float32)
        log_theta = (log_theta.expand(2, -1).clone() if per_cell else log_theta).requires_grad_()
        pi = torch.tensor(dropout, dtype=torch.float32).expand(2, -1).clone().requires_grad_()
        heads = {"zinb": [log_theta, pi], "nb": [log_theta], "poisson": []}[name]
        heads = heads + [None] * (2 - len(heads))
        value, _ = count_log_likelihood(minibatch_of(x, torch.float32), logits, log_library, *heads, 0.0, kernel)
        assert torch.isfinite(value).all()
        for gradient in torch.autograd.grad(value.sum(), [logits, log_library, *filter(torch.is_tensor, heads)]):
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() > 0


@pytest.mark.parametrize("mean", [0.3, 5.0, 200.0])
@pytest.mark.parametrize("theta", [0.2, 3.0, 50.0])
def test_values_equal_scipy(mean, theta):
    x = np.arange(60)
    log_mean, log_theta, dropout = (np.full(60, v) for v in (np.log(mean), np.log(theta), -1.2))
    nb = stats.nbinom.logpmf(x, theta, theta / (theta + mean))
    pi = special.expit(-1.2)
    zinb = np.log(np.where(x == 0, pi, 0) + (1 - pi) * np.exp(nb))
    for name, reference in {"poisson": stats.poisson.logpmf(x, mean), "nb": nb, "zinb": zinb}.items():
        value, _ = one_entry_each(name, x, log_mean, log_theta, dropout)
        np.testing.assert_allclose(value, reference, rtol=1e-10, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("dropout", [-30.0, -2.0, 3.0])
@pytest.mark.parametrize("theta", [1e-2, 1.0, 1e6])
@pytest.mark.parametrize("mean", [1e-6, 0.2, 4.0])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_probabilities_sum_to_one(name, mean, theta, dropout):
    n = 20_000 if theta < 1 else 400  # far enough: the tail falls as (m / (m + theta))^x
    heads = [np.full(n, v) for v in (np.log(mean), np.log(theta), dropout)]
    value, _ = one_entry_each(name, np.arange(n), *heads)
    assert float(value.exp().sum()) == pytest.approx(1, abs=1e-7)


def test_negative_binomial_tends_to_poisson_and_zinb_to_negative_binomial():
    x = np.arange(30)
    log_mean, log_theta, dropout = np.full(30, np.log(4.0)), np.full(30, np.log(1e8)), np.full(30, -30.0)
    value = {name: one_entry_each(name, x, log_mean, log_theta, dropout)[0] for name in COUNT_LIKELIHOODS}
    np.testing.assert_allclose(value["nb"], value["poisson"], atol=1e-5)
    np.testing.assert_allclose(value["zinb"], value["nb"], atol=1e-8)


# ------------------------------------------------------------------------------- whole cells: dense formula, gradients


@pytest.fixture(scope="module")
def cells():
    """5 cells x 9 genes in float64: sparse, with an empty cell, a full one, and counts from 1 to 1,000."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.7, (5, 9)).astype(float)
    x[1], x[2, 3], x[3] = 0, 1000, rng.integers(1, 9, 9)
    assert (x[[0, 2, 4]] == 0).any(1).all()
    return minibatch_of(x)


def parameters_of(name, per_cell, seed=1):
    """(logits, log_library, log_theta, dropout) of 5 cells x 9 genes, those that the likelihood has."""
    rng = np.random.default_rng(seed)
    shapes = [(5, 9), (5,)]
    shapes += [(5, 9) if per_cell else (9,)] * (name != "poisson") + [(5, 9)] * (name == "zinb")
    centres = (0.0, 2.0, 0.5, -1.0)
    return [
        torch.tensor(centre + rng.standard_normal(shape), requires_grad=True)
        for shape, centre in zip(shapes, centres, strict=False)
    ]


def naive(x, logits, log_library, log_theta=None, dropout=None, dropout_cost=0.0):
    """The dense formula, entry by entry, as in a textbook."""
    dense = x.dense()
    m = torch.softmax(logits, 1) * log_library.exp()[:, None]
    if log_theta is None:
        return (dense * m.log() - m - torch.lgamma(dense + 1)).sum(1)
    theta = log_theta.exp().expand_as(m)
    log_nb = torch.lgamma(dense + theta) - torch.lgamma(theta) - torch.lgamma(dense + 1)
    log_nb = log_nb + theta * (theta / (theta + m)).log() + dense * (m / (theta + m)).log()
    if dropout is None:
        return log_nb.sum(1)
    lost = torch.sigmoid(dropout)
    log_p = torch.where(dense == 0, (lost + (1 - lost) * log_nb.exp()).log(), (1 - lost).log() + log_nb)
    return (log_p - dropout_cost * lost).sum(1)


every_form = pytest.mark.parametrize(
    ("name", "per_cell", "dropout_cost"),
    [
        ("zinb", False, 0.0),
        ("zinb", True, 0.0),
        ("zinb", False, 0.3),
        ("zinb", True, 0.3),
        ("nb", False, 0.0),
        ("nb", True, 0.0),
        ("poisson", False, 0.0),
    ],
)


@both_kernels
@every_form
def test_values_and_gradients_equal_the_plain_formula(cells, name, per_cell, dropout_cost, kernel):
    parameters = parameters_of(name, per_cell)
    heads = parameters + [None] * (4 - len(parameters))
    ours, _ = count_log_likelihood(cells, *heads, dropout_cost, kernel)
    dense = naive(cells, *heads, dropout_cost)
    np.testing.assert_allclose(ours.detach(), dense.detach(), rtol=1e-12)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], dtype=torch.float64)  # backward scales each cell by its own
    ours_gradients = torch.autograd.grad(ours @ weights, parameters)
    for gradient, reference in zip(ours_gradients, torch.autograd.grad(dense @ weights, parameters), strict=True):
        assert gradient.shape == reference.shape
        np.testing.assert_allclose(gradient, reference, rtol=1e-9, atol=1e-10)


@both_kernels
def test_nothing_is_kept_once_the_values_are_gone(cells, kernel):
    """A circle of references, which only the garbage collector breaks, would keep the arrays of many steps on a GPU."""
    value, dropouts = count_log_likelihood(cells, *parameters_of("zinb", per_cell=False), kernel=kernel)
    kept = weakref.ref(value.grad_fn.gradients[0])
    assert kept() is not None
    del value, dropouts
    assert kept() is None


@every_form
def test_gradcheck(cells, name, per_cell, dropout_cost):
    parameters = parameters_of(name, per_cell)
    padding = [None] * (4 - len(parameters))
    assert torch.autograd.gradcheck(
        lambda *heads: count_log_likelihood(cells, *heads, *padding, dropout_cost), parameters, eps=1e-6, atol=1e-5
    )


def test_gradcheck_sees_a_wrong_gradient(cells):
    """The check above can fail: a cost left out of the value but not of the gradient is found."""
    parameters = parameters_of("zinb", per_cell=False)

    def mismatched(*heads):
        value, dropouts = count_log_likelihood(cells, *heads, 0.3)
        return value + 0.3 * dropouts  # the second output is a constant to autograd

    assert not torch.autograd.gradcheck(mismatched, parameters, eps=1e-6, atol=1e-5, raise_exception=False)


def test_expected_dropouts_are_a_constant_and_what_they_cost(cells):
    logits, log_library, log_theta, dropout = parameters_of("zinb", per_cell=False)
    free, expected = count_log_likelihood(cells, logits, log_library, log_theta, dropout)
    charged, again = count_log_likelihood(cells, logits, log_library, log_theta, dropout, 0.7)
    assert not expected.requires_grad
    assert charged.requires_grad
    np.testing.assert_allclose(expected, torch.sigmoid(dropout.detach()).sum(1), rtol=1e-12)
    np.testing.assert_array_equal(expected, again)
    np.testing.assert_allclose((free - charged).detach(), 0.7 * expected, rtol=1e-10)
    _, none = count_log_likelihood(cells, logits, log_library, log_theta)
    np.testing.assert_array_equal(none, np.zeros(5))


@both_kernels
@every_form
def test_single_precision_equals_double_precision_on_whole_cells(cells, name, per_cell, dropout_cost, kernel):
    double = [p.detach().float().double().requires_grad_() for p in parameters_of(name, per_cell)]
    single = [p.detach().float().requires_grad_() for p in double]
    padding = [None] * (4 - len(double))
    value, dropouts = count_log_likelihood(cells, *double, *padding, dropout_cost)
    x = cells.to("cpu", torch.float32)
    rounded, rounded_dropouts = count_log_likelihood(x, *single, *padding, dropout_cost, kernel)
    assert rounded.dtype == torch.float32
    np.testing.assert_allclose(rounded.detach(), value.detach(), rtol=2e-6)
    np.testing.assert_allclose(rounded_dropouts, dropouts, rtol=2e-6)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0])
    rounded_gradients = torch.autograd.grad(rounded @ weights, single)
    for gradient, reference in zip(
        rounded_gradients, torch.autograd.grad(value @ weights.double(), double), strict=True
    ):
        assert gradient.dtype == torch.float32
        np.testing.assert_allclose(gradient, reference, rtol=2e-5, atol=2e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("n_cells", [1, 2, 37])
@every_form
def test_fused_equals_plain_at_any_size_and_number_of_threads(name, per_cell, dropout_cost, n_cells, monkeypatch):
    """Genes that do not fill a vector register, cells that do not fill the threads, the mean as loss."""
    rng = np.random.default_rng(n_cells)
    n_genes = 203
    x = minibatch_of(rng.poisson(rng.gamma(0.3, 3, (n_cells, n_genes))), torch.float32)
    shapes = [(n_cells, n_genes), (n_cells,)]
    shapes += [(n_cells, n_genes) if per_cell else (n_genes,)] * (name != "poisson")
    shapes += [(n_cells, n_genes)] * (name == "zinb")
    leaves = [torch.tensor(2 * rng.standard_normal(shape), dtype=torch.float32) for shape in shapes]
    leaves[1] += 5
    padding = [None] * (4 - len(leaves))

    def value_and_gradients(kernel):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        value, dropouts = count_log_likelihood(x, *inputs, *padding, dropout_cost, kernel)
        return [value.detach(), dropouts, *torch.autograd.grad(-value.mean(), inputs)]

    of_plain = value_and_gradients(plain)
    monkeypatch.setattr(module, "plain", None)  # fused must not fall back
    for n_threads in (1, 3):
        with threads(n_threads):
            found = value_and_gradients(fused)
        for ours, expected in zip(found, of_plain, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=3e-5, atol=1e-5 * float(expected.abs().max()))


def test_compiled_kernels_leave_torchs_number_of_threads_alone():
    """In a process of its own, for whatever numba or torch set up once."""
    script = """
        import numpy as np, torch
        from helpers import few_steps, small_counts, small_vae
        from sccvae.kernels.reference import FUSED
        torch.set_num_threads(3)
        counts = small_counts(20)
        few_steps(small_vae(counts, kernels=FUSED), counts, n_steps=1)
        print(torch.get_num_threads())
    """
    options = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parents[1]}
    options["env"] = {**os.environ, "NUMBA_DISABLE_JIT": "0"}
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)], **options).stdout.strip() == "3"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", range(4), ids=["logits", "log library", "log theta", "drop-out"])
@both_kernels
def test_a_parameter_that_is_not_a_number_shows_in_the_value(cells, which, value, kernel):
    """Of its cell, or of all cells: training finds it in the loss."""
    parameters = [p.detach().float() for p in parameters_of("zinb", per_cell=False)]
    parameters[which].view(-1)[0] = value
    result, _ = count_log_likelihood(cells.to("cpu", torch.float32), *parameters, 0.05, kernel)
    if math.isnan(value):
        assert result[0].isnan()
        assert torch.isfinite(result[1:]).all() or which == 2
    reference, _ = count_log_likelihood(cells.to("cpu", torch.float32), *parameters, 0.05, plain)
    np.testing.assert_allclose(result, reference, rtol=1e-5)


@pytest.mark.parametrize("scaled", [True, False], ids=["log1p of scaled counts", "values as they are"])
@pytest.mark.parametrize("encode", [PLAIN.encode, FUSED.encode], ids=["plain", "fused"])
def test_sparse_product_equals_the_dense_one_with_its_gradient(encode, scaled):
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.4, (37, 203)).astype(float)
    dense[2] = 0
    x = minibatch_of(dense, torch.float32)
    scale = torch.tensor(rng.lognormal(0, 2, 37), dtype=torch.float32) if scaled else None
    weight = torch.tensor(rng.standard_normal((203, 5)), dtype=torch.float32, requires_grad=True)
    factor = torch.from_numpy(dense)
    factor = torch.log1p(factor * scale[:, None]) if scaled else factor
    exact = weight.detach().double().requires_grad_()
    ours, reference = encode(x, scale, weight), factor @ exact
    np.testing.assert_allclose(ours.detach(), reference.detach(), rtol=1e-5, atol=1e-4)
    assert not ours[2].any()
    upstream = torch.tensor(rng.standard_normal((37, 5)))
    (ours_gradient,) = torch.autograd.grad((ours * upstream.float()).sum(), weight)
    (gradient,) = torch.autograd.grad((reference * upstream).sum(), exact)
    np.testing.assert_allclose(ours_gradient, gradient, rtol=1e-4, atol=1e-4)


def test_only_some_inputs_need_a_gradient(cells):
    """The library is data in some models, and outputs are computed without any gradient."""
    logits, log_library, log_theta, dropout = parameters_of("zinb", per_cell=False)
    value, _ = count_log_likelihood(cells, logits, log_library.detach(), log_theta, dropout)
    reference, _ = count_log_likelihood(cells, logits, log_library, log_theta, dropout)
    assert torch.equal(
        torch.autograd.grad(value.sum(), logits)[0], torch.autograd.grad(reference.sum(), logits, retain_graph=True)[0]
    )
    with torch.no_grad():
        silent, _ = count_log_likelihood(cells, logits, log_library, log_theta, dropout)
    assert not silent.requires_grad
    assert torch.equal(silent, reference.detach())


def test_inputs_are_left_as_they_were(cells):
    parameters = parameters_of("zinb", per_cell=True)
    before = [p.detach().clone() for p in parameters]
    values = cells.values.clone()
    count_log_likelihood(cells, *parameters, 0.3)[0].sum().backward()
    assert all(torch.equal(p.detach(), b) for p, b in zip(parameters, before, strict=True))
    assert torch.equal(cells.values, values)


def test_empty_minibatch_row_is_all_zeros():
    """A cell without counts: minus the sum of the means, for Poisson."""
    x = minibatch_of(np.zeros((1, 4)))
    value, _ = count_log_likelihood(x, torch.zeros(1, 4, dtype=torch.float64), torch.tensor([2.0]).double())
    assert float(value) == pytest.approx(-np.exp(2.0), rel=1e-12)


def test_log_probability_of_a_zero_keeps_its_digits_at_tiny_means():
    """log p(0) is -m to first order; 1 - exp(...) or log(theta) - log(theta + m) would round it to 0."""
    mean = np.array([1e-12, 1e-9, 1e-6])
    value, _ = one_entry_each(
        "nb", np.zeros(3), np.log(mean).astype(np.float32).astype(float), np.zeros(3), np.zeros(3), torch.float32
    )
    np.testing.assert_allclose(value, -np.exp(np.log(mean).astype(np.float32)), rtol=1e-5)


def test_softplus_identity_of_a_zero_inflated_zero():
    """log p(0) = softplus(t - pi) - softplus(-pi), the form in the heading of the module."""
    t = -2 * np.log1p(3 / 2)
    pi = np.linspace(-30, 30, 13)
    n = len(pi)
    value, _ = one_entry_each("zinb", np.zeros(n), np.full(n, np.log(3.0)), np.full(n, np.log(2.0)), pi)
    reference = softplus(torch.tensor(t - pi)) - softplus(torch.tensor(-pi))
    np.testing.assert_allclose(value, reference, atol=1e-12)


# ----------------------------------------------------------------------------------------------------- thinned cells


def deep_cells(n_cells=400, n_genes=30, seed=0):
    """Counts of 0 to some hundreds, the last cell without any."""
    counts = np.random.default_rng(seed).poisson(np.geomspace(0.2, 300, n_genes), (n_cells, n_genes))
    counts[-1] = 0
    return minibatch_of(counts, dtype=torch.float32)


@pytest.mark.parametrize("thin", [plain_thin, fused_thin])
def test_thinned_cells_are_less_deep_each_by_a_share_of_its_own(thin):
    x = deep_cells()
    seen = thin(x, torch.Generator().manual_seed(1), most_hidden=0.6)
    share = (seen.dense().sum(1) / x.dense().sum(1))[:-1]
    assert stats.kstest(share, stats.uniform(0.4, 0.6).cdf).pvalue > 1e-3  # totals are large: the share is as drawn
    assert ((seen.values >= 0) & (seen.values <= x.values) & (seen.values % 1 == 0)).all()
    np.testing.assert_allclose(seen.log_total[:-1], seen.dense().sum(1)[:-1].log(), rtol=1e-6)
    assert seen.log_total[-1] == 0
    # Within a cell, genes lose as many as others do, and each by chance: Pearson's statistic of hidden molecules.
    hidden, n, rate = (x.values - seen.values).numpy(), x.values.numpy(), 1 - share.numpy()[x.rows]
    statistic = ((hidden - n * rate) ** 2 / (n * rate * (1 - rate))).sum()
    assert statistic == pytest.approx(len(n) - len(share), rel=0.06)
    kept = {name: getattr(seen, name) is getattr(x, name) for name in x._fields}
    assert [name for name, same in kept.items() if not same] == ["values", "log_total"]


@pytest.mark.parametrize("thin", [plain_thin, fused_thin])
def test_thinning_depends_on_the_generator_alone_and_leaves_the_cells(thin):
    x, state = deep_cells(20), torch.get_rng_state()
    before = x.values.clone()
    first, again, other = (thin(x, torch.Generator().manual_seed(s), most_hidden=0.5).values for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x.values, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert thin(x, None, most_hidden=0) is x


def test_in_double_precision_fused_thins_as_plain_does():
    x = minibatch_of(deep_cells(20).dense())
    found, expected = (thin(x, torch.Generator().manual_seed(1), most_hidden=0.5) for thin in (fused_thin, plain_thin))
    assert found.values.dtype == torch.float64
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("thin", [plain_thin, fused_thin])
def test_copies_of_a_cell_are_thinned_apart(thin):
    x = deep_cells(10).repeated(2)
    seen = thin(x, torch.Generator().manual_seed(0), most_hidden=0.5)
    assert seen.copies == 2
    totals = seen.dense().sum(1)[:-2]
    assert (totals[::2] != totals[1::2]).all()
