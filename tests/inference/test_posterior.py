"""What a trained model says of cells: the same whatever the chunks, in the order asked, true to its distributions."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import COUNT_LIKELIHOODS, LIKELIHOOD_NAMES, few_steps, generator, small_counts, small_vae, support_of
from scipy import stats

from sccvae.inference import generation, posterior
from sccvae.inference.posterior import (
    Request,
    chunk_of,
    decode,
    elbo_terms,
    encode,
    expression,
    likelihood_parameters,
    marginal_log_likelihood,
    predictive,
)

N_CELLS, N_GENES, N_BATCHES = 60, 24, 3
FORMS = [
    *itertools.product(COUNT_LIKELIHOODS, ["lognormal", "observed"]),
    ("normal", "lognormal"),
    ("bernoulli", "lognormal"),
]
every_form = pytest.mark.parametrize(("name", "library"), FORMS)


def generate(vae, codes, rng):
    """Counts, z and library sizes of new cells."""
    z = generation.draw_z(vae, len(codes), rng)
    log_library = generation.draw_log_library(vae, codes, rng) if vae.likelihood.has_library else None
    latent = generation.Latent(codes, None, z, log_library)
    _, x, _ = next(generation.counts_of(vae, latent, rng, len(codes)))
    return x, z, latent.library


@pytest.fixture(scope="module")
def trained():
    """Function: (likelihood, library) -> a model after 20 steps, and its counts; made once each."""
    made = {}

    def make(name="zinb", library="lognormal"):
        if (name, library) not in made:
            counts = small_counts(N_CELLS, N_GENES, support=support_of(name), n_batches=N_BATCHES, covariates=True)
            dispersion = "gene-batch" if library == "lognormal" else "gene"
            choices = {"gene_likelihood": name, "library": library, "dispersion": dispersion, "dropout_rate": 0.3}
            vae = small_vae(counts, **choices, encode_covariates=library == "lognormal")
            few_steps(vae, counts, n_steps=20)
            made[name, library] = vae, counts
        return made[name, library]

    return make


def expressed(vae, counts, library_size=1.0, genes=None, chunk_size=None, *, batches=(None,), n_samples=None, seed=0):
    """All rows of `expression` in one array; every row is filled once."""
    n_columns = counts.n_genes if genes is None else len(genes)
    filled, times = np.zeros((len(counts), n_columns)), np.zeros(len(counts))
    request = Request(batches, n_samples, seed, chunk_size)
    for rows, rho in expression(vae, counts, library_size, genes, request):
        filled[rows] = rho
        times[rows] += 1
    np.testing.assert_array_equal(times, 1)
    return filled


@torch.no_grad()
def posterior_draws(vae, counts, n_samples, seed):
    """Mean and variance of x given z and l, drop-out included, (cells, genes) each, for draws of z and l; by hand."""
    source, x, name = generator(seed), counts.minibatch(slice(None)), vae.architecture.gene_likelihood
    q_z, q_l = vae.eval().encoder(x)
    for _ in range(n_samples):
        z = q_z.mean + q_z.variance.sqrt() * torch.randn(q_z.mean.shape, generator=source)
        log_l = x.log_size
        if q_l is not None:
            log_l = q_l.mean + q_l.variance.sqrt() * torch.randn(N_CELLS, generator=source)
        logits, log_dispersion, pi = vae.decoder(z, x)
        if name == "normal":
            mean, variance = logits, (2 * log_dispersion).exp().expand_as(logits)
        elif name == "bernoulli":
            mean = torch.sigmoid(logits)
            variance = mean * (1 - mean)
        else:
            m = torch.softmax(logits, 1) * log_l.exp()[:, None]
            scatter = m if log_dispersion is None else m + m.square() / log_dispersion.exp()
            kept = torch.ones(()) if pi is None else torch.sigmoid(-pi)
            mean, variance = kept * m, kept * scatter + kept * (1 - kept) * m.square()
        yield mean.double().numpy(), variance.double().numpy()


def encoded(vae, counts, chunk_size=None):
    """(cells, 2 n_latent + 2) of everything that the encoder says."""
    parts = []
    for rows, x, q_z, q_l in encode(vae, counts, chunk_size):
        assert rows.stop - rows.start == x.n_cells == len(q_z.mean)
        columns = [q_z.mean, q_z.variance]
        columns += [] if q_l is None else [q_l.mean[:, None], q_l.variance[:, None]]
        parts.append(torch.cat(columns, 1).numpy())
    return np.concatenate(parts)


# -------------------------------------------------------------------------------------------------- chunks and subsets


@every_form
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunk_size_does_not_change_results(trained, name, library, chunk_size):
    vae, counts = trained(name, library)
    np.testing.assert_allclose(encoded(vae, counts, chunk_size), encoded(vae, counts), rtol=1e-4, atol=1e-5)
    for batches in ([None], [0, 2]):
        chunked, whole = (expressed(vae, counts, chunk_size=c, batches=batches) for c in (chunk_size, None))
        np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-6)


@every_form
def test_default_chunks_do_not_change_results(trained, name, library, monkeypatch):
    """Where no chunk size can be passed: parameters, the terms of the bound, and the marginal likelihood."""
    vae, counts = trained(name, library)
    parameters, terms = likelihood_parameters(vae, counts), elbo_terms(vae, counts, seed=0)
    marginal = marginal_log_likelihood(vae, counts, n_samples=3, seed=0)
    monkeypatch.setattr(posterior, "chunk_of", lambda n_genes, device: 7)
    chunked = likelihood_parameters(vae, counts)
    assert chunked.keys() == parameters.keys()
    for key, values in parameters.items():
        np.testing.assert_allclose(chunked[key], values, rtol=1e-6, err_msg=key)
    np.testing.assert_allclose(elbo_terms(vae, counts, seed=0), terms, rtol=1e-6)
    np.testing.assert_allclose(marginal_log_likelihood(vae, counts, n_samples=3, seed=0), marginal, rtol=1e-6)


@every_form
def test_subsets_and_other_orders_give_the_same_rows(trained, name, library):
    vae, counts = trained(name, library)
    cells = np.random.default_rng(0).permutation(N_CELLS)[:23]
    part = counts[cells]
    np.testing.assert_allclose(encoded(vae, part), encoded(vae, counts)[cells], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(expressed(vae, part), expressed(vae, counts)[cells], rtol=1e-4, atol=1e-6)
    whole, rows = likelihood_parameters(vae, counts), likelihood_parameters(vae, part)
    for key in whole:
        np.testing.assert_allclose(rows[key], whole[key][cells], rtol=1e-4, atol=1e-6, err_msg=key)
    np.testing.assert_allclose(
        elbo_terms(vae, part, seed=0)[1:], elbo_terms(vae, counts, seed=0)[1:, cells], rtol=1e-4, atol=1e-5
    )


def test_chunks_are_about_half_a_million_values():
    assert chunk_of(1000, torch.device("cpu")) == 2**19 // 1000
    assert chunk_of(1000, torch.device("cuda")) == 2**21 // 1000
    assert chunk_of(200_000, torch.device("cpu")) == 16


def test_results_need_no_gradient_and_leave_dropout_out(trained):
    vae, counts = trained()
    reference = expressed(vae.eval(), counts)
    np.testing.assert_array_equal(expressed(vae.train(), counts), reference)
    (draw,) = decode(vae.train(), counts, Request())
    assert not draw.decoded.logits.requires_grad
    assert not next(encode(vae, counts))[2].mean.requires_grad
    assert torch.is_grad_enabled()


def test_global_random_state_is_left_alone(trained):
    vae, counts = trained()
    state = lambda: (torch.get_rng_state().tolist(), str(np.random.get_state()))  # noqa: E731, NPY002
    before = state()
    expressed(vae, counts, n_samples=2)
    predictive(vae, counts, seed=[0, 1])
    elbo_terms(vae, counts, seed=0)
    marginal_log_likelihood(vae, counts, n_samples=2, seed=0)
    generate(vae, np.zeros((5, 2), dtype=np.int64), np.random.default_rng(0))
    assert state() == before


# ---------------------------------------------------------------------------------------------------------- expression


@pytest.mark.parametrize("n_samples", [None, 3])
@pytest.mark.parametrize("batches", [[None], [1], [0, 1, 2]], ids=["own batch", "one batch", "all batches"])
@pytest.mark.parametrize("name", COUNT_LIKELIHOODS)
def test_expression_of_a_cell_sums_to_one(trained, name, batches, n_samples):
    vae, counts = trained(name)
    rho = expressed(vae, counts, batches=batches, n_samples=n_samples)
    assert (rho > 0).all()
    np.testing.assert_allclose(rho.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("n_samples", [None, 4])
@every_form
def test_expression_over_several_batches_is_the_mean_of_the_single_ones(trained, name, library, n_samples):
    vae, counts = trained(name, library)
    singles = [expressed(vae, counts, batches=[b], n_samples=n_samples, seed=3) for b in range(N_BATCHES)]
    together = expressed(vae, counts, batches=list(range(N_BATCHES)), n_samples=n_samples, seed=3)
    np.testing.assert_allclose(together, np.mean(singles, axis=0), rtol=1e-4, atol=1e-6)
    assert np.abs(singles[0] - singles[1]).max() > 1e-3  # batches differ at all
    own = expressed(vae, counts, n_samples=n_samples, seed=3)
    batch = counts.codes[:, 0]
    np.testing.assert_allclose(own, np.choose(batch[:, None], singles), rtol=1e-4, atol=1e-6)


def test_expression_in_another_batch_keeps_the_cells_code_and_its_other_covariates(trained):
    """Decoded by hand from the code of the cell as it was measured."""
    vae, counts = trained()
    vae.eval()
    x = counts.minibatch(slice(None))
    with torch.no_grad():
        codes = x.codes.clone()
        codes[:, 0] = 2
        logits = vae.decoder(vae.encoder(x)[0].mean, x._replace(codes=codes)).logits
    np.testing.assert_allclose(expressed(vae, counts, batches=[2]), torch.softmax(logits, 1), rtol=1e-4, atol=1e-7)


@every_form
def test_expression_of_some_genes_is_those_columns_in_the_order_asked(trained, name, library):
    vae, counts = trained(name, library)
    genes = np.array([17, 3, 3, 0])
    np.testing.assert_array_equal(expressed(vae, counts, genes=genes), expressed(vae, counts)[:, genes])


@every_form
def test_library_sizes_multiply_expression(trained, name, library):
    vae, counts = trained(name, library)
    rho = expressed(vae, counts)
    np.testing.assert_allclose(expressed(vae, counts, 1e4), 1e4 * rho, rtol=1e-5)
    np.testing.assert_allclose(expressed(vae, counts, 2), 2 * rho, rtol=1e-5)
    if name not in COUNT_LIKELIHOODS:
        return
    total = counts.matrix.toarray().sum(1, keepdims=True)
    np.testing.assert_allclose(expressed(vae, counts, "observed"), rho * total, rtol=1e-4)
    inferred = np.exp(encoded(vae, counts)[:, [-2]]) if library == "lognormal" else total
    np.testing.assert_allclose(expressed(vae, counts, "latent"), rho * inferred, rtol=1e-4)
    if library == "lognormal":
        assert np.abs(inferred / total - 1).max() > 1e-3


@pytest.mark.parametrize("library_size", ["latent", "observed"])
@pytest.mark.parametrize("name", ["normal", "bernoulli"])
def test_expression_without_a_library_is_the_mean_of_x_whatever_library_is_asked(trained, name, library_size):
    vae, counts = trained(name)
    np.testing.assert_allclose(expressed(vae, counts, library_size), expressed(vae, counts), rtol=1e-6)


def test_expression_over_draws_tends_to_its_posterior_mean(trained):
    vae, counts = trained()
    rho = {n: expressed(vae, counts, n_samples=n, seed=1) for n in (1, 10, 1000)}
    reference = expressed(vae, counts, n_samples=1000, seed=2)
    error = {n: np.abs(values - reference).mean() for n, values in rho.items()}
    assert error[1] > 2 * error[10] > 8 * error[1000]
    np.testing.assert_array_equal(rho[10], expressed(vae, counts, n_samples=10, seed=1))


# ------------------------------------------------------------------------------------- parameters and predictive draws


@every_form
def test_likelihood_parameters_are_the_decoders_at_the_posterior_means(trained, name, library):
    vae, counts = trained(name, library)
    parameters = likelihood_parameters(vae, counts)
    assert (
        set(parameters)
        == {
            "zinb": {"mean", "dispersions", "dropout"},
            "nb": {"mean", "dispersions"},
            "poisson": {"mean"},
            "normal": {"mean", "scale"},
            "bernoulli": {"mean"},
        }[name]
    )
    assert all(v.shape == (N_CELLS, N_GENES) and v.dtype == np.float32 for v in parameters.values())
    mean = expressed(vae, counts, "latent" if name in COUNT_LIKELIHOODS else 1)
    np.testing.assert_allclose(parameters["mean"], mean, rtol=1e-4, atol=1e-6)
    spread = parameters.get("dispersions", parameters.get("scale"))
    if spread is not None:
        log_dispersion = vae.decoder.log_dispersion.detach().numpy()
        rows = counts.codes[:, 0] if library == "lognormal" else np.zeros(N_CELLS, dtype=int)
        np.testing.assert_allclose(spread, np.exp(log_dispersion[rows]), rtol=1e-5)
        assert (np.ptp(spread, axis=0).max() > 1e-3) == (library == "lognormal")
    if name == "zinb":
        assert ((parameters["dropout"] > 0) & (parameters["dropout"] < 1)).all()
        x = counts.minibatch(slice(None))
        with torch.no_grad():
            pi = vae.eval().decoder(vae.encoder(x)[0].mean, x).dropout
        np.testing.assert_allclose(parameters["dropout"], torch.sigmoid(pi), rtol=1e-4)


@every_form
def test_predictive_draws_have_the_mean_of_the_likelihood(trained, name, library):
    """Over 150 draws, per gene: within their standard errors of the mean over 1,000 draws of z and l."""
    vae, counts = trained(name, library)
    draws = [predictive(vae, counts, seed=[0, k]) for k in range(150)]
    assert all(d.format == "csr" and d.dtype == np.float32 and d.shape == (N_CELLS, N_GENES) for d in draws)
    per_gene = np.array([np.asarray(d.sum(0)).ravel() for d in draws], dtype=np.float64)
    expected = sum(mean.sum(0) for mean, _ in posterior_draws(vae, counts, 1000, seed=1)) / 1000
    error = per_gene.std(0) / np.sqrt(len(draws))
    assert (np.abs(per_gene.mean(0) - expected) < 4.5 * error).all()
    assert (error < 0.1 * np.abs(expected) + 1).all()  # small enough to tell


@every_form
def test_predictive_draws_are_as_scattered_as_the_model_says(trained, name, library):
    """Totals of cells scatter through z, l and x; with any of them held at its mean they would scatter less."""
    vae, counts = trained(name, library)
    totals = np.array([np.asarray(predictive(vae, counts, seed=[1, k]).sum(1)).ravel() for k in range(200)])
    within, total = [], []
    for mean, variance in posterior_draws(vae, counts, 1000, seed=2):
        within.append(variance.sum(1))
        total.append(mean.sum(1))
    expected = np.mean(within, axis=0) + np.var(total, axis=0)
    ratio = totals.var(0, ddof=1) / expected
    assert ratio.mean() == pytest.approx(1, abs=0.06)
    assert ratio.min() > 0.6
    assert ratio.max() < 1.6


def test_predictive_draws_depend_on_the_seed_alone(trained):
    vae, counts = trained()
    first, again, other = (predictive(vae, counts, seed=seed) for seed in ([0, 1], [0, 1], [0, 2]))
    assert (first != again).nnz == 0
    assert (first != other).nnz > 0


# ------------------------------------------------------------------------------------------------------------ generate


@pytest.mark.parametrize("name", LIKELIHOOD_NAMES)
def test_generated_cells_come_from_the_prior_of_their_batch(trained, name):
    vae, _ = trained(name)
    n = 4000
    codes = np.column_stack([np.repeat([0, 2], n), np.zeros(2 * n, dtype=np.int64)])
    x, z, library = generate(vae, codes, np.random.default_rng(0))
    assert sp.issparse(x)
    assert x.shape == (2 * n, N_GENES)
    assert z.shape == (2 * n, 3)
    assert z.dtype == np.float32
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    means = np.zeros((2, N_GENES))
    for k, code in enumerate([0, 2]):
        rows = slice(k * n, (k + 1) * n)
        if name in COUNT_LIKELIHOODS:
            prior = stats.norm(float(vae.library_mean[code]), float(vae.library_variance[code]) ** 0.5)
            assert stats.kstest(np.log(library[rows]), prior.cdf).pvalue > 1e-3
        else:
            assert library is None
        means[k] = np.asarray(x[rows].mean(0)).ravel()
    # x given z and l is a draw of the likelihood at the decoded z: residuals average to nothing
    with torch.no_grad():
        covariates = posterior.Minibatch.of_covariates(codes, 2, N_GENES)
        decoded = vae.eval().decoder(torch.from_numpy(z), covariates)
        log_l = None if library is None else torch.from_numpy(np.log(library))
        expected = vae.likelihood.mean(decoded, log_l)
        if name == "zinb":
            expected = expected * torch.sigmoid(-decoded.dropout)
    residual = x.toarray() - expected.numpy()
    for rows in (slice(0, n), slice(n, 2 * n)):
        error = residual[rows].std(0) / np.sqrt(n)
        assert (np.abs(residual[rows].mean(0)) < 4.5 * error + 1e-6).all()
    assert (np.abs(means[0] - means[1]) > 1e-3).any()


def test_generated_cells_come_from_the_mixture_where_it_is_the_prior():
    counts = small_counts(40)
    vae = small_vae(counts, prior_components=3)
    with torch.no_grad():
        vae.prior.mean.copy_(torch.tensor([[-9.0, 0, 0], [0, 9, 0], [0, 0, 9]]))
        vae.prior.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    _, z, _ = generate(vae, np.zeros((3000, 1), dtype=np.int64), np.random.default_rng(0))
    heap = np.abs(z).argmax(1)
    np.testing.assert_allclose(np.bincount(heap) / 3000, [0.5, 0.3, 0.2], atol=0.04)
    np.testing.assert_allclose(z[heap == 0].mean(0), [-9, 0, 0], atol=0.1)
    assert z.dtype == np.float32


def test_generated_cells_depend_on_the_generator_and_not_on_chunks_of_z(trained):
    vae, _ = trained()
    codes = np.zeros((50, 2), dtype=np.int64)
    (x, z, library), (x2, z2, library2), (x3, z3, _) = (
        generate(vae, codes, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert (x != x2).nnz == 0
    np.testing.assert_array_equal(z, z2)
    np.testing.assert_array_equal(library, library2)
    assert (x != x3).nnz > 0
    assert (z != z3).any()


# --------------------------------------------------------------------------------------- ELBO and marginal likelihood


@every_form
def test_elbo_terms_are_those_of_the_model(trained, name, library):
    vae, counts = trained(name, library)
    terms = elbo_terms(vae, counts, seed=4)
    with torch.no_grad():
        x = counts.minibatch(slice(None))
        elbo = vae.eval()(x, posterior.noise_of(vae, 4)(slice(0, N_CELLS), 0))
    assert terms.shape == (3, N_CELLS)
    expected = torch.stack([elbo.reconstruction, elbo.kl_z, elbo.kl_l])
    np.testing.assert_allclose(terms, expected, rtol=1e-6)
    np.testing.assert_array_equal(terms, elbo_terms(vae, counts, seed=4))
    assert (terms[0] != elbo_terms(vae, counts, seed=5)[0]).any()
    assert (terms[1] > 0).all()
    assert (terms[2] > 0).all() == (name in COUNT_LIKELIHOODS and library == "lognormal")


@every_form
def test_marginal_log_likelihood_improves_with_draws_and_converges(trained, name, library):
    vae, counts = trained(name, library)
    marginal = {n: marginal_log_likelihood(vae, counts, n_samples=n, seed=0).mean() for n in (1, 5, 50, 500)}
    assert marginal[1] + 0.05 < marginal[5] < marginal[50]
    assert marginal[50] - 0.02 < marginal[500]
    assert marginal[500] - marginal[50] < 0.5 * (marginal[50] - marginal[1]) + 0.02


@pytest.mark.parametrize("n_components", [0, 4])
@pytest.mark.parametrize("library", ["observed", "lognormal"])
@pytest.mark.parametrize("name", ["poisson", "zinb"])
def test_marginal_log_likelihood_equals_plain_monte_carlo(name, library, n_components):
    """log of the mean of p(x|z, l) with z and l from the prior: no importance weights to get wrong."""
    counts = small_counts(6, 4)
    vae = small_vae(counts, gene_likelihood=name, library=library, prior_components=n_components)
    few_steps(vae, counts, n_steps=5)
    vae.eval()
    with torch.no_grad():  # a q that is neither prior nor posterior, but wide enough for weights without heavy tails
        vae.encoder.z.weight[:, : vae.architecture.n_latent] *= 0.4
        vae.encoder.z.bias[vae.architecture.n_latent :] += 0.1
        if library == "lognormal":
            vae.encoder.library.bias[1] = np.log(0.5 * float(vae.library_variance[0]))
    n, source = 10_000, generator(3)
    marginal = marginal_log_likelihood(vae, counts, n_samples=2000, seed=0)
    q_z, _ = vae.encoder(counts.minibatch(slice(None)))
    assert (q_z.mean.abs().mean(0) > 0.1).all()
    difference = []
    for cell in range(6):
        x = counts.minibatch(np.full(n, cell))
        with torch.no_grad():
            z = torch.randn(n, 3, generator=source)
            if vae.prior is not None:
                z = torch.from_numpy(vae.prior.sample(n, np.random.default_rng(cell)))
            log_l = x.log_size if library == "observed" else vae.library_prior(x).sample(source)
            log_p, _ = vae.likelihood.log_prob(x, vae.decoder(z, x), log_l)
        weights = torch.exp(log_p.double() - log_p.max())
        assert float(weights.std() / weights.mean()) / np.sqrt(n) < 0.03  # standard error of the next line
        difference.append(marginal[cell] - float(torch.log(weights.mean()) + log_p.max()))
    assert np.abs(difference).max() < 0.2
    assert abs(np.mean(difference)) < 0.05


def test_marginal_log_likelihood_leaves_out_what_dropouts_cost(trained):
    """The cost belongs to training; p(x) of a model does not depend on it."""
    counts = small_counts(20)
    values = []
    for cost in (0.0, 2.0):
        vae = small_vae(counts, dropout_cost=cost)
        values.append(marginal_log_likelihood(vae, counts, n_samples=3, seed=0))
    np.testing.assert_array_equal(values[0], values[1])
