"""Small data and small models that several test files share."""

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.special import gammaln

from sccvae.data.counts import Counts, Minibatch
from sccvae.data.packed_rows import PackedRows
from sccvae.kernels.reference import PLAIN, Kernels
from sccvae.modules.architecture import Architecture
from sccvae.modules.autoencoders import Denoiser
from sccvae.modules.vae import VAE
from sccvae.training.loop import Plan, Progress, fit
from sccvae.training.optimizer import Adam

LIKELIHOOD_NAMES = ("zinb", "nb", "poisson", "normal", "bernoulli")
SIGMAS = 5  # a right answer fails a bound of so many standard errors once in two million
COUNT_LIKELIHOODS = ("zinb", "nb", "poisson")
N_CELLS = 90
TRAIN, VALIDATION = np.arange(70), np.arange(70, N_CELLS)
CPU = torch.device("cpu")
CUDA = pytest.param(
    torch.device("cuda"),
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
)
EVERY_OPTION = {
    "batch": {"batch_key": "batch"},
    "nb": {"batch_key": "batch", "gene_likelihood": "nb"},
    "poisson": {"batch_key": "batch", "gene_likelihood": "poisson"},
    "normal": {"batch_key": "batch", "gene_likelihood": "normal", "layer": "lognorm"},
    "bernoulli": {"batch_key": "batch", "gene_likelihood": "bernoulli", "layer": "binary"},
    "size_factors": {"batch_key": "batch", "size_factor_key": "size_factor"},
    "categorical": {"batch_key": "batch", "categorical_covariate_keys": ["donor", "kind"]},
    "continuous": {"batch_key": "batch", "continuous_covariate_keys": ["age"]},
    "covariates_without_batch": {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
    "encoder_not_told": {"batch_key": "batch", "continuous_covariate_keys": ["age"], "encode_covariates": False},
    "observed": {"batch_key": "batch", "library": "observed"},
    "gene_batch": {"batch_key": "batch", "dispersion": "gene-batch"},
    "gene_cell": {"batch_key": "batch", "dispersion": "gene-cell"},
    "nb_gene_batch": {"batch_key": "batch", "gene_likelihood": "nb", "dispersion": "gene-batch"},
    "normal_gene_cell": {"gene_likelihood": "normal", "layer": "lognorm", "dispersion": "gene-cell"},
    "normal_gene_batch": {"batch_key": "batch", "gene_likelihood": "normal", "dispersion": "gene-batch"},
    "two_layers": {"batch_key": "batch", "n_layers": 2, "encode_covariates": True},
    "standard_normal_prior": {"batch_key": "batch", "prior_components": 0},
    "batches_left_alone": {"batch_key": "batch", "batch_mixing": 0.0},
    "free_weights": {"batch_key": "batch", "weight_precision": 0.0},
    "no_dropout": {"dropout_rate": 0.0, "dropout_cost": 0.0},
    "thinned": {"batch_key": "batch", "thinning": 0.5},
    "mask": {"batch_key": "batch", "mask_var": "highly_variable"},
    "no_batch": {},
}


@contextmanager
def threads(n: int):
    """Inside, torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def warnings_are_errors():
    """Inside, every warning is raised, but those of anndata 0.13 asking pandas 3 for options that do nothing there."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = "The '(future.infer_string|mode.chained_assignment)' option is deprecated"
        warnings.filterwarnings("ignore", message=options, module="anndata")
        yield


def a_plan(**choices) -> Plan:
    """A short run."""
    defaults = {
        "max_epochs": 4,
        "batch_size": 32,
        "learning_rate": 1e-2,
        "kl_warmup": 0.3,
        "early_stopping": False,
        "patience": 20,
        "gradient_clip": 50.0,
        "weight_decay": 0.0,
        "n_draws": 1,
        "precision": "full",
    }
    return Plan(**{**defaults, **choices})


def run(vae, counts, *, train=TRAIN, validation=VALIDATION, seed=0, first_epoch=1, **choices) -> Progress:
    """Train for a few epochs on `TRAIN`."""
    progress = Progress(first_epoch=first_epoch)
    fit(vae, counts, train, validation, a_plan(**choices), progress, seed=seed, progress_bar=False)
    return progress


def move(adam: Adam, rate: float) -> None:
    """A step of `adam` as training takes it."""
    adam.move(*adam.numbers(rate))


def double(*arrays) -> list[torch.Tensor]:
    """Arrays as variables of float64."""
    return [torch.from_numpy(np.asarray(a, np.float64)).requires_grad_() for a in arrays]


def minibatch_of(dense, dtype=torch.float64) -> Minibatch:
    """A minibatch of one batch holding `dense`, (cells, genes); its constants are exact in float64, then rounded."""
    dense = np.asarray(dense, dtype=np.float64)
    matrix, n_cells = sp.csr_matrix(dense), len(dense)
    log_total = np.log(np.maximum(np.abs(dense).sum(1), 1e-8))
    log_factorial = np.where(dense > 0, gammaln(np.maximum(dense, 0) + 1), 0).sum(1)
    return Minibatch(
        indptr=torch.from_numpy(matrix.indptr.astype(np.int64)),
        genes=torch.from_numpy(matrix.indices.astype(np.int32)),
        values=torch.from_numpy(matrix.data).to(dtype),
        n_genes=dense.shape[1],
        log_total=torch.from_numpy(log_total).to(dtype),
        log_size=torch.from_numpy(log_total).to(dtype),
        log_factorial=torch.from_numpy(log_factorial).to(dtype),
        codes=torch.zeros(n_cells, 1, dtype=torch.int64),
        continuous=torch.zeros(n_cells, 0, dtype=dtype),
        labels=torch.full((n_cells,), -1),
    )


def small_values(n_cells: int, n_genes: int, support: str, seed: int = 0) -> np.ndarray:
    """(cells, genes) of two kinds of cells that differ in half of the genes; no cell is empty."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=n_cells)
    profiles = rng.gamma(0.7, size=n_genes) * np.where(
        rng.random((2, n_genes)) < 0.5, rng.lognormal(0, 1.5, (2, n_genes)), 1
    )
    rate = profiles[kind] / profiles[kind].sum(1, keepdims=True)
    if support == "real":
        return rng.normal(np.log1p(n_genes * rate), 0.3)
    counts = rng.poisson(rate * rng.lognormal(np.log(1.5 * n_genes), 0.4, (n_cells, 1)) * rng.gamma(2, 0.5, rate.shape))
    counts[counts.sum(1) == 0, 0] = 1
    return np.minimum(counts, 1) if support == "binary" else counts


def small_counts(
    n_cells: int = 90,
    n_genes: int = 24,
    *,
    support: str = "counts",
    n_batches: int = 1,
    covariates: bool = False,
    seed: int = 0,
) -> Counts:
    """`small_values` with batches in turn and, if asked, a categorical (3 levels) and 2 continuous covariates."""
    values = small_values(n_cells, n_genes, support, seed)
    rng = np.random.default_rng([seed, 1])
    codes, n_levels, continuous = (np.arange(n_cells) % n_batches)[:, None], (n_batches,), None
    if covariates:
        codes = np.column_stack([codes, rng.integers(3, size=n_cells)])
        n_levels, continuous = (n_batches, 3), rng.standard_normal((n_cells, 2)).astype(np.float32)
    matrix = sp.csr_matrix(values.astype(np.float32))
    rows, nonnegative = PackedRows.of(matrix, counts=support != "real"), support != "real"
    return Counts.of(rows, codes=codes, n_levels=n_levels, continuous=continuous, nonnegative=nonnegative)


def small_architecture(counts: Counts, **choices) -> Architecture:
    """A narrow network that fits `counts`."""
    defaults = {
        "n_hidden": 16,
        "n_latent": 3,
        "n_layers": 1,
        "dropout_rate": 0.1,
        "dispersion": "gene",
        "gene_likelihood": "zinb",
        "library": "lognormal",
        "encode_covariates": False,
        "dropout_cost": 0.05,
    }
    shapes = {"n_genes": counts.n_genes, "n_levels": counts.n_levels, "n_continuous": counts.continuous.shape[1]}
    return Architecture(**shapes, **{**defaults, **choices})


def small_vae(counts: Counts, *, seed: int = 0, kernels: Kernels = PLAIN, **choices) -> VAE:
    """A narrow model that starts from `counts`."""
    vae = VAE(small_architecture(counts, **choices), torch.Generator().manual_seed(seed), kernels)
    vae.start_from(counts)
    return vae


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def support_of(name: str) -> str:
    return {"normal": "real", "bernoulli": "binary"}.get(name, "counts")


def few_steps(vae: VAE, counts: Counts, n_steps: int = 3, learning_rate: float = 1e-2, seed: int = 0) -> None:
    """Some steps of Adam on all cells, so that no head is at its initial zeros any more."""
    optimizer, noise = torch.optim.Adam(vae.parameters(), lr=learning_rate), generator(seed)
    x = counts.minibatch(slice(None))
    vae.train()
    for _ in range(n_steps):
        optimizer.zero_grad()
        vae(x, noise).loss().backward()
        optimizer.step()


def state_of(vae: VAE) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in vae.state_dict().items()}


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are the same to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def real_adata(values) -> AnnData:
    return AnnData(np.asarray(values, dtype=np.float32))


def read_only(values) -> sp.csr_matrix:
    """CSR float32 whose arrays cannot be written to."""
    m = sp.csr_matrix(np.asarray(values, dtype=np.float32))
    for array in (m.data, m.indices, m.indptr):
        array.setflags(write=False)  # as those of Counts are
    return m


def close(values, mean, variance):
    """The mean of draws lies within so many standard errors of `mean`."""
    assert abs(np.mean(values) - mean) < SIGMAS * np.sqrt(variance / np.size(values))


def denoiser(counts, corruption, continuation=0.5, seed=0, **choices) -> Denoiser:
    """A narrow denoising autoencoder that starts from `counts`."""
    choices = {"library": "observed", "dropout_rate": 0.0, **choices}
    net = Denoiser(
        small_architecture(counts, **choices),
        torch.Generator().manual_seed(seed),
        corruption=corruption,
        continuation=continuation,
    )
    net.start_from(counts)
    return net
