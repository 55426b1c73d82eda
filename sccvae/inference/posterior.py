"""Outputs of a trained `VAE` for cells: arrays in, arrays out, a chunk of cells at a time.

Every function is deterministic: posterior means, or samples from a generator seeded by the caller.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from sccvae.data.counts import Counts, Minibatch
from sccvae.data.gpu.device_loading import chunk_of, chunks
from sccvae.inference.expression import Expressed
from sccvae.inference.noise import Noise, streams
from sccvae.kernels.parallel import alone, each_alone, multiply
from sccvae.modules.count_distribution import CountDistribution
from sccvae.modules.distributions import Gaussian
from sccvae.modules.likelihoods import Decoded
from sccvae.modules.vae import VAE
from sccvae.statistics.differential_expression.groups import Group

SAMPLED = 64  # cells whose x is sampled at once, from one random stream
SUMMED = 256  # cells whose expression is summed at once
TAKEN = 2**16  # cells whose counts are in memory at once


@dataclass(frozen=True)
class Request:
    """What to decode of each cell: by default the posterior mean, once, in the cell's own batch."""

    batches: Sequence[int | None] = (None,)  # codes of the batches to decode in; None stands for each cell's own
    n_samples: int | None = None  # draws of z and l per cell; None decodes the posterior means once
    seed: int = 0  # of the draws
    chunk_size: int | None = None  # cells at once; None takes about half a million values


class Draw(NamedTuple):
    """Decoding of a chunk of cells."""

    rows: slice
    x: Minibatch
    decoded: Decoded
    log_library: torch.Tensor | None  # (cells,); None where the likelihood has no library


@each_alone
@torch.no_grad()
def encode(
    vae: VAE, counts: Counts, chunk_size: int | None = None
) -> Iterator[tuple[slice, Minibatch, Gaussian, Gaussian | None]]:
    """Yield (rows, minibatch, q(z|x), q(log l|x)) for all cells in order."""
    vae.eval()
    for rows in chunks(len(counts), chunk_size or chunk_of(counts.n_genes, vae.device)):
        x = counts.minibatch(rows).to(vae.device)
        yield rows, x, *vae.encoder(x)


def noise_of(vae: VAE, seed: int) -> Callable[[slice, int], Iterator[torch.Tensor]]:
    """Return a function from rows and number of a sample to noise for z, (cells, n_latent), and log l, (cells,)."""
    noise = Noise(seed, vae.architecture.n_latent + 1, vae.library_mean)

    def of(rows: slice, sample: int) -> Iterator[torch.Tensor]:
        numbers = noise(rows, sample)
        return iter((numbers[:, :-1], numbers[:, -1]))

    return of


@alone()
def latent(vae: VAE, counts: Counts) -> np.ndarray:
    """Compute the mean of q(z|x), (cells, n_latent) float32."""
    mean = np.empty((len(counts), vae.architecture.n_latent), dtype=np.float32)
    for rows, _, q_z, _ in encode(vae, counts):
        mean[rows] = q_z.mean.cpu().numpy()
    return mean


@alone()
def latent_moments(vae: VAE, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and variance of q(z|x), (cells, n_latent) float32 each."""
    mean, variance = np.empty((2, len(counts), vae.architecture.n_latent), dtype=np.float32)
    for rows, _, q_z, _ in encode(vae, counts):
        mean[rows], variance[rows] = q_z.mean.cpu().numpy(), q_z.variance.cpu().numpy()
    return mean, variance


@alone()
def aggregate(vae: VAE, counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and variance of q(y|x), (cells, dimensions) each; y is z and, if there is one, the library size.

    The library size is given as log l in standard deviations from the mean of its prior in the cell's batch.
    """
    mean, variance = np.empty((2, len(counts), vae.architecture.n_latent), dtype=np.float32)
    log_l, uncertainty = counts.log_size.astype(np.float32), np.zeros(len(counts), dtype=np.float32)
    for rows, _, q_z, q_l in encode(vae, counts):
        mean[rows], variance[rows] = q_z.mean.cpu().numpy(), q_z.variance.cpu().numpy()
        if q_l is not None:
            log_l[rows], uncertainty[rows] = q_l.mean.cpu().numpy(), q_l.variance.cpu().numpy()
    if not vae.likelihood.has_library:
        return mean, variance
    centre, spread2 = (m.cpu().numpy()[counts.codes[:, 0]] for m in (vae.library_mean, vae.library_variance))
    deviation = (log_l - centre) / np.sqrt(spread2)
    return np.column_stack([mean, deviation]), np.column_stack([variance, uncertainty / spread2])


@each_alone
@torch.no_grad()
def codes(
    vae: VAE, counts: Counts, request: Request
) -> Iterator[tuple[slice, Minibatch, torch.Tensor, torch.Tensor | None]]:
    """(rows, minibatch, z, log l) to decode: for all cells in order, chunk by chunk, each sample, each batch."""
    noise, n_samples = noise_of(vae, request.seed), request.n_samples
    for rows, x, q_z, q_l in encode(vae, counts, request.chunk_size):
        for sample in range(n_samples or 1):
            numbers = iter(()) if n_samples is None else noise(rows, sample)
            z = q_z.mean if n_samples is None else q_z.sample(numbers)
            log_l = x.log_size if vae.likelihood.has_library else None
            if q_l is not None:
                log_l = q_l.mean if n_samples is None else q_l.sample(numbers)
            for batch in request.batches:
                yield rows, x if batch is None else x.with_level(0, batch), z, log_l


@each_alone
@torch.no_grad()
def decode(vae: VAE, counts: Counts, request: Request) -> Iterator[Draw]:
    """Decode what `codes` yields."""
    for rows, x, z, log_l in codes(vae, counts, request):
        yield Draw(rows, x, vae.decoder(z, x), log_l)


@each_alone
@torch.no_grad()
def expression(
    vae: VAE,
    counts: Counts,
    library_size: float | Literal["latent", "observed"],
    genes: np.ndarray | None,
    request: Request,
    *,
    keep_draws: bool = False,
    out: np.ndarray | None = None,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows, normalised expression of the requested genes, (cells, genes), averaged over batches) per chunk.

    The expression is averaged over samples, too, unless `keep_draws`: then it has shape (n_samples, cells, genes). If
    `out` is given, an array for all cells for which `can_be_filled` is True, its rows are filled and yielded.
    """
    n_samples = request.n_samples or 1
    per_chunk, n_means = n_samples * len(request.batches), n_samples if keep_draws else 1
    per_mean, done = per_chunk // n_means, 0
    n_columns, expressed, whole = counts.n_genes if genes is None else len(genes), Expressed(vae), torch.empty(0)
    direct = genes is None and vae.device.type == "cpu" and vae.library_mean.dtype == torch.float32
    if expressed.compiled and direct and out is not None and request.chunk_size is None and request.n_samples is None:
        # Only codes are made of so many at once.
        request = replace(request, chunk_size=4 * chunk_of(counts.n_genes, vae.device))
    for rows, x, z, log_l in codes(vae, counts, request):
        if done == 0:
            if out is None:
                means = np.empty((n_means, len(z), n_columns), np.float32)
            else:
                means = (out if keep_draws else out[None])[:, rows]
            if not direct and len(whole) < len(z):
                whole = z.new_empty(len(z), counts.n_genes)
        factor: torch.Tensor | float = 1 / per_mean
        if not isinstance(library_size, str):
            factor *= library_size
        elif log_l is not None:
            factor = factor * (x.log_size if library_size == "observed" else log_l).exp()
        mean, within = divmod(done, per_mean)
        target = torch.from_numpy(means[mean]) if direct else whole[: len(z)]
        expressed.into(target, z, x, factor, add=within > 0)
        if not direct and within == per_mean - 1:
            means[mean] = target.cpu().numpy()[:, slice(None) if genes is None else genes]
        done = (done + 1) % per_chunk
        if done == 0:
            yield rows, means if keep_draws else means[0]


def can_be_filled(out: Any) -> bool:
    """Return whether `expression` can write into `out`; other arrays must be filled with the yielded rows."""
    return isinstance(out, np.ndarray) and out.dtype == np.float32 and out.flags.c_contiguous and out.flags.writeable


@alone()
def group_expression(
    vae: VAE,
    counts: Counts,
    cells: Sequence[np.ndarray],
    batches: Sequence[int | None],
    n_samples: int,
    *,
    max_cells: int,
    chunk_size: int | None,
    seed: int,
) -> list[Group]:
    """Sample the mean expression of groups of cells, decoded in the same batches, and sum the groups' counts.

    A sample is a Bayesian bootstrap (Rubin 1981) over the cells: a mean of decoded cells with random weights.

    Parameters
    ----------
    cells
        Numbers of the cells of each group.
    batches
        As in `Request`. In each cell's own, batch effects are left in, so counts are not split by batch, either.
    max_cells
        Largest number of cells of a group to decode; a larger group is represented by a random sample.
    """
    if n_samples < 10:
        raise ValueError(f"n_samples is {n_samples}; expected at least 10 to estimate a standard deviation.")
    groups = []
    for number, of_group in enumerate(cells):
        rng = np.random.default_rng([seed, number])
        taken = np.sort(rng.choice(of_group, max_cells, replace=False)) if len(of_group) > max_cells else of_group
        some, samples_seed = counts[taken], int(rng.integers(2**62))
        repeats = -(-1000 // (len(taken) * len(batches)))  # a small group has each cell's z drawn more often
        decoded = expression(vae, some, 1.0, None, Request(batches, repeats, samples_seed, chunk_size))
        samples = _bootstrap((rho for _, rho in decoded), n_samples, min(len(taken), SUMMED), counts.n_genes, rng)
        observed, expected, library = _counts_and_expectation(vae, some, chunk_size, by_batch=None not in batches)
        raw, detected = _gene_sums(counts, of_group)
        groups.append(
            Group(
                n_cells=len(of_group),
                samples=samples,
                observed=observed,
                expected=expected,
                library=library * len(of_group) / len(taken),
                raw=raw,
                detected=detected,
            )
        )
    return groups


def _gene_sums(counts: Counts, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum the counts of each gene over cells, (genes,) float64; count the cells that have any, (genes,) int64."""
    total, detected = np.zeros((2, counts.n_genes))
    for start in range(0, len(cells), TAKEN):
        some = counts.stored.take(cells[start : start + TAKEN])
        total += some.gene_sums(lambda x: x)
        detected += some.gene_sums(np.ones_like)
    return total, detected.astype(np.int64)


def _bootstrap(
    chunks: Iterator[np.ndarray], n_samples: int, size: int, n_genes: int, rng: np.random.Generator
) -> np.ndarray:
    """Compute means of rows with random weights, (n_samples, genes), in sums of `size` rows for any sizes of chunks."""
    samples, total = torch.zeros(n_samples, n_genes), np.zeros((n_samples, 1))
    buffer, n = np.empty((size, n_genes), dtype=np.float32), 0

    def add(rows: np.ndarray) -> None:
        weights = rng.standard_exponential((len(rows), n_samples), dtype=np.float32)
        multiply(torch.from_numpy(weights).t(), torch.from_numpy(rows), samples, add=True)
        total[:, 0] += weights.sum(0)

    for rows in chunks:
        begin = 0
        while begin < len(rows):
            taken = rows[begin : begin + size - n]
            buffer[n : n + len(taken)] = taken
            begin, n = begin + len(taken), n + len(taken)
            if n == size:
                add(buffer)
                n = 0
    if n:
        add(buffer[:n])
    return samples.numpy() / total.astype(np.float32)


@each_alone
@torch.no_grad()
def count_moments(
    vae: VAE, counts: Counts, chunk_size: int | None = None
) -> Iterator[tuple[Draw, torch.Tensor, torch.Tensor]]:
    """Yield (decoding, E[x], E[x] / Var[x]) at the posterior means per chunk, (cells, genes) each.

    Only for count likelihoods; see `Likelihood.moments`.
    """
    for draw in decode(vae, counts, Request(chunk_size=chunk_size)):
        assert draw.log_library is not None
        yield draw, *vae.likelihood.moments(draw.decoded, draw.log_library)


@each_alone
def gene_moments(vae: VAE, counts: Counts, genes: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield (rows, E[x], Var[x]) of some genes at the posterior means per chunk, (cells, genes) each."""
    columns = torch.from_numpy(genes).to(vae.device)
    for draw, expected, weight in count_moments(vae, counts):
        yield draw.rows, expected[:, columns].cpu().numpy(), (expected / weight)[:, columns].cpu().numpy()


@torch.no_grad()
def _counts_and_expectation(
    vae: VAE, counts: Counts, chunk_size: int | None, *, by_batch: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Sum w x and w E[x] over cells, w = E[x] / Var[x], (batches, genes) each, and sum the library sizes."""
    shape, library = (counts.n_levels[0] if by_batch else 1, counts.n_genes), np.zeros(len(counts))
    observed, expected = torch.zeros(2, *shape, dtype=torch.float64, device=vae.device)
    for draw, mean, weight in count_moments(vae, counts, chunk_size):
        assert draw.log_library is not None
        batch = draw.x.codes[:, 0] if by_batch else torch.zeros_like(draw.x.codes[:, 0])
        observed.index_add_(0, batch, (weight * draw.x.dense()).double())
        expected.index_add_(0, batch, (weight * mean).double())
        library[draw.rows] = draw.log_library.exp().cpu().numpy()
    return observed.cpu().numpy(), expected.cpu().numpy(), float(library.sum())


@alone()
@torch.no_grad()
def likelihood_parameters(vae: VAE, counts: Counts) -> dict[str, np.ndarray]:
    """Compute the parameters of p(x | z, l) at the posterior means, (cells, genes) each; see `SCCVAE`."""
    shape = (len(counts), counts.n_genes)
    result: dict[str, np.ndarray] = {}
    for draw in decode(vae, counts, Request()):
        for name, of_chunk in vae.likelihood.parameters(draw.decoded, draw.log_library).items():
            values = of_chunk.cpu().numpy()
            if values.ndim == 1:
                result[name] = np.broadcast_to(values, shape)
            else:
                result.setdefault(name, np.empty(shape, dtype=np.float32))[draw.rows] = values
    return result


@each_alone
@torch.no_grad()
def count_distributions(
    vae: VAE, counts: Counts, *, n_samples: int, seed: int
) -> Iterator[tuple[slice, CountDistribution]]:
    """(rows, p(x | z, l)) for chunks of cells in order, `n_samples` samples of z and l for each."""
    for draw in decode(vae, counts, Request(n_samples=n_samples, seed=seed)):
        yield draw.rows, vae.likelihood.distribution(draw.decoded, draw.log_library)


@alone()
@torch.no_grad()
def predictive(vae: VAE, counts: Counts, batch: int | None = None, *, seed: Sequence[int]) -> sp.csr_matrix:
    """Sample x once for every cell, z and l from their posteriors, (cells, genes); in the cell's own batch for None."""
    rng = np.random.default_rng(seed)
    noise_seed, rng_of = int(rng.integers(2**62)), streams(rng)
    draws = enumerate(decode(vae, counts, Request((batch,), n_samples=1, seed=noise_seed, chunk_size=SAMPLED)))
    parts = [sp.csr_matrix(vae.likelihood.sample(d.decoded, d.log_library, rng_of(part))) for part, d in draws]
    return sp.vstack(parts, format="csr")


@alone()
@torch.no_grad()
def elbo_terms(vae: VAE, counts: Counts, *, seed: int) -> np.ndarray:
    """Compute the ELBO's terms from one sample of z and l, (3, cells): reconstruction, KL of z, KL of l."""
    terms, noise = np.zeros((3, len(counts))), noise_of(vae, seed)
    vae.eval()
    for rows in chunks(len(counts), chunk_of(counts.n_genes, vae.device)):
        x = counts.minibatch(rows).to(vae.device)
        elbo = vae(x, noise(rows, 0))
        terms[:, rows] = torch.stack([elbo.reconstruction, elbo.kl_z, elbo.kl_l]).cpu().numpy()
    return terms


@alone()
@torch.no_grad()
def marginal_log_likelihood(vae: VAE, counts: Counts, *, n_samples: int, seed: int) -> np.ndarray:
    """Compute importance-sampled log p(x), (cells,): log mean of p(x|z,l) p(z) p(l) / (q(z|x) q(l|x)), z, l ~ q.

    Burda, Grosse & Salakhutdinov 2016, equation 8; a lower bound that tightens with `n_samples`.
    """
    result, noise = np.zeros(len(counts)), noise_of(vae, seed)
    for rows, x, q_z, q_l in encode(vae, counts):
        log_weights = []
        for sample in range(n_samples):
            numbers = noise(rows, sample)
            z = q_z.sample(numbers)
            log_w = vae.log_prior(z) - q_z.log_prob(z).sum(1)
            log_l = x.log_size if vae.likelihood.has_library else None
            if q_l is not None:
                log_l = q_l.sample(numbers)
                log_w = log_w + vae.library_prior(x).log_prob(log_l) - q_l.log_prob(log_l)
            log_p, _ = vae.likelihood.log_prob(x, vae.decoder(z, x), log_l)
            log_weights.append((log_w + log_p).double())
        result[rows] = (torch.logsumexp(torch.stack(log_weights), dim=0) - np.log(n_samples)).cpu().numpy()
    return result


@alone()
@torch.no_grad()
def decoded_codes(vae: VAE, z: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Decode the expression at z, (points, n_latent), under covariates `profile`, (1, categorical): (points, genes)."""
    a, mean = vae.architecture, np.empty((len(z), vae.architecture.n_genes), dtype=np.float32)
    for rows in chunks(len(z), chunk_of(a.n_genes, vae.device)):
        part = torch.from_numpy(z[rows]).to(vae.device)
        x = Minibatch.of_covariates(np.repeat(profile, len(part), 0), a.n_continuous, a.n_genes).to(vae.device)
        mean[rows] = vae.likelihood.expression(vae.decoder(part, x, only_logits=True)).cpu().numpy()
    return mean
