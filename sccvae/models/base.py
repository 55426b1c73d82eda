"""Base class of all models: training, reconstruction, saving, loading."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData

from sccvae.data.columns import labels_of
from sccvae.data.counts import Counts, split
from sccvae.data.matrix import check_adata
from sccvae.data.origin import Annotation, is_training_data
from sccvae.data.schema import Schema
from sccvae.data.sources import Given
from sccvae.inference import posterior
from sccvae.inference.labels import without_contradicted
from sccvae.io import storage
from sccvae.kernels.reference import PLAIN, Kernels, for_device
from sccvae.models.description import Description, understood
from sccvae.models.plan import TrainingModel, count_of_processes, default_batch_size, default_epochs
from sccvae.models.signatures import missing, with_history
from sccvae.modules.architecture import Architecture
from sccvae.modules.likelihoods import Likelihood
from sccvae.modules.vae import VAE
from sccvae.statistics.calibration import Calibration
from sccvae.validation.arguments import checked_library_size, flag, limit, real, unless_none
from sccvae.validation.cells import numbers_of_cells
from sccvae.validation.wording import Text, warn

logger = logging.getLogger("sccvae")


class BaseModel(TrainingModel):
    """Base class of `SCCVAE`, `Autoencoder` and `DenoisingAutoencoder`.

    It holds everything that is saved, and the outputs of every model. Outputs are deterministic: means, or samples from
    a generator with the given seed.
    """

    objective: ClassVar[str] = "ELBO"  # maximised in training
    generated: ClassVar[tuple[str, ...]] = ("sccvae_library",)  # columns of `obs` that `generate` writes

    def _set(self, schema, architecture, profiles, frequencies, seed, device, options=None) -> None:
        self._schema: Schema = schema
        self._profiles, self._frequencies = profiles, frequencies  # combinations of categories; cells with each
        self._seed: int = seed
        self._options: dict[str, Any] = options or {}  # arguments of `_network` besides the architecture
        device = device_of(device)
        generator = torch.Generator().manual_seed(seed)
        self._vae = self._network(architecture, generator, for_device(device), self._options).to(device).eval()
        self._counts: Counts | None = None
        self._cell_names: pd.Index | None = None
        self._annotation: Annotation | None = None
        self._rows: list[dict[str, Any]] = []
        self._best_epoch = 0
        self._calibration: Calibration | None = None  # of labels and novelty
        self._loading = ""  # of the last run on a GPU: whether counts were "resident" there or "streamed" to it

    def _begin(
        self,
        given: Any,
        frame: AnnData,
        schema: Schema,
        counts: Counts,
        architecture: Architecture,
        seed: int,
        device: str | torch.device,
        options: dict[str, Any] | None = None,
    ) -> None:
        """Make the network for data that were read, and initialise it from them.

        `given` is what the user gave, `frame` its tables.
        """
        for key in (schema.batch_key, *schema.categorical_covariate_keys):
            if key in self.generated:
                raise ValueError(f"Batches or a covariate are in obs[{key!r}], which generate() writes: rename it.")
        if schema.batch_key is not None and "all" in schema.categories[0] and len(schema.categories[0]) > 1:
            warn(
                "A batch is called 'all': transform_batch='all' and batch='all' mean that one, and "
                "list(model.batches) means all of them."
            )
        profiles, frequencies = np.unique(counts.codes, axis=0, return_counts=True)
        self._set(schema, architecture, profiles.tolist(), frequencies.tolist(), seed, device, options)
        self._vae.start_from(counts)
        self._remember(given, frame, counts)

    def _split(self, train_size: float) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the cells to train on, and of the cells held out."""
        if self._counts is None:
            raise RuntimeError(
                f"This model was loaded without data; to continue training, load it as {self.kind}.load(path, adata)."
            )
        rng = np.random.default_rng(self._seed)
        return split(self._counts.codes[:, 0], real("train_size", train_size), rng)

    def _epochs(self, max_epochs: int | None, train_size: float) -> int:
        """Epochs of a run; for None, by the number of cells to train on."""
        return default_epochs(len(self._split(train_size)[0])) if max_epochs is None else max_epochs

    def _batch_size(self, batch_size: int | None, train_size: float) -> int:
        """Cells per step; for None, by the number of cells to train on and the device."""
        if batch_size is not None:
            return batch_size
        return default_batch_size(len(self._split(train_size)[0]), self.device, count_of_processes())

    def _length_of_run(self, max_epochs: int | None, train_size: float, batch_size: int | None) -> tuple[float, float]:
        """Epochs and steps of a run with these arguments of `train`; infinite if the model has no data."""
        if self._counts is None:
            return np.inf, np.inf
        n_epochs, size = self._epochs(max_epochs, train_size), self._batch_size(batch_size, train_size)
        return n_epochs, n_epochs * -(-len(self._split(train_size)[0]) // size)

    def _after_training(self) -> None:
        """Update what depends on the weights, after every run, however it ended."""

    @staticmethod
    def _network(
        architecture: Architecture, generator: torch.Generator, kernels: Kernels, options: dict[str, Any]
    ) -> VAE:
        """Make the network that is trained."""
        return VAE(architecture, generator, kernels)

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch and split: ELBO and its terms (nats per cell), KL weight, learning rate, seconds.

        Examples
        --------
        >>> model.history[["epoch", "split", "elbo"]].shape
        (4, 3)
        """
        return with_history(pd.DataFrame(self._rows))

    def get_reconstruction(
        self, adata: AnnData | None = None, indices: Any = None, *, chunk_size: int | None = None
    ) -> np.ndarray:
        """Mean of p(x | z) at each cell's latent mean, (cells, genes) float32, in the units of the data.

        Counts are at the cell's library size, and without zero inflation (`zinb`).

        Parameters
        ----------
        {new_data}
        {indices}
        {chunk_size}

        Examples
        --------
        >>> model.get_reconstruction(indices=[0, 1]).shape
        (2, 50)
        """
        counts, _ = self._cells(adata, indices)
        chunk_size = unless_none(limit, "chunk_size", chunk_size)
        mean = np.empty((len(counts), counts.n_genes), dtype=np.float32)
        request = posterior.Request(chunk_size=chunk_size)
        for _ in posterior.expression(self._vae, counts, "latent", None, request, out=mean):
            pass
        return mean

    @torch.no_grad()
    def decode(self, z: np.ndarray, *, batch: str | None = None, library_size: float = 1.0) -> np.ndarray:
        """Mean of p(x | z) at points of the latent space, (codes, genes) float32.

        Parameters
        ----------
        z
            Points of the latent space (codes), (codes, n_latent), finite.
        batch
            Name of the batch to decode in; optional if there is only one. Other categorical covariates take their most
            frequent values in that batch, continuous ones their means.
        library_size
            Counts per cell; 1 gives normalised expression. Ignored for `normal` and `bernoulli`.

        Raises
        ------
        ValueError
            `z` has another shape or is not finite; the library size is not positive; the batch is unknown or missing.

        Examples
        --------
        >>> z = model.get_latent_representation(indices=slice(0, 3))
        >>> model.decode(z, batch="batch_0").shape
        (3, 50)
        """
        self._check_trained()
        a, expected = self._vae.architecture, "finite numbers, (codes, n_latent)"
        try:
            with np.errstate(over="ignore"):
                z = np.asarray(z, dtype=np.float32)
        except (TypeError, ValueError):
            raise TypeError(f"z is of type {type(z).__name__} and holds no numbers; expected {expected}.") from None
        if z.ndim != 2 or z.shape[1] != a.n_latent or not np.isfinite(z).all():
            raise ValueError(f"z has shape {z.shape}; expected finite codes, (codes, n_latent) = (any, {a.n_latent}).")
        library_size = checked_library_size(library_size)
        if batch is None and len(self.batches) > 1:
            raise ValueError(
                f"There are {len(self.batches)} batches; say which to decode in: batch={self.batches[0]!r}."
            )
        code = 0 if batch is None else self._schema.code_of_batch(batch)
        in_batch = [(n, p) for n, p in zip(self._frequencies, self._profiles, strict=True) if p[0] == code]
        profile = np.array([max(in_batch)[1]])  # (1, 1 + categorical covariates)
        mean = posterior.decoded_codes(self._vae, z, profile)
        return mean * np.float32(library_size) if self.likelihood.has_library else mean

    # -------------------------------------------------------------------------------------------------------- storage

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> None:
        """Write the model, without data, to the folder `path`: `weights.safetensors` and `model.json`.

        If the process is killed meanwhile, the folder holds the old model or the new one.

        Raises
        ------
        FileExistsError
            There is a model at `path` and `overwrite` is False.
        TypeError, ValueError
            `overwrite` is neither True nor False; `path` is no path; a weight is not finite.
        OSError
            `path` cannot be written to, or the disk is full. An earlier model at `path` is kept.

        Examples
        --------
        >>> model.save("my_model", overwrite=True)
        """
        overwrite = flag("overwrite", overwrite)
        storage.save(path, self._tensors(), self._description(), overwrite=overwrite)

    def _description(self) -> dict[str, Any]:
        """Everything that is saved besides arrays."""
        return {
            "kind": self.kind,
            "architecture": asdict(self._vae.architecture),
            "schema": asdict(self._schema),
            "profiles": self._profiles,
            "frequencies": self._frequencies,
            "seed": self._seed,
            "options": self._options,
            "best_epoch": self._best_epoch,
            "history": self._rows,
        }

    @classmethod
    def load(
        cls, path: str | os.PathLike, adata: AnnData | None = None, *, device: str | torch.device = "auto"
    ) -> Self:
        """Load a model that `save` wrote. Nothing in the folder is executed.

        Parameters
        ----------
        adata
            Data for methods that are given none, and for further training.

        Raises
        ------
        FileNotFoundError, sccvae.ModelFileError
            There is no model at `path`, it is damaged, or it is of another class or program.

        Examples
        --------
        >>> model.save("my_model", overwrite=True)
        >>> again = type(model).load("my_model", adata)  # or sccvae.SCCVAE.load
        >>> bool((again.get_latent_representation() == model.get_latent_representation()).all())
        True
        """
        device, model = device_of(device), cls.__new__(cls)
        with storage.opened(path, cls.kind) as saved:
            found = understood(saved.description, cls.kind)
            saved.check(cls._expected(found, saved.arrays))
            model._set(*found[:2], found.profiles, found.frequencies, found.seed, device, found.options)
            model._take(saved.tensors())
            model._rows, model._best_epoch, model._calibration = found.history, found.best_epoch, found.calibration
        if adata is not None:
            model._remember(adata, *model._read_given(adata))
        return model

    @classmethod
    def _expected(cls, found: Description, arrays: storage.Arrays) -> storage.Arrays:
        """Types and shapes of a model's arrays, found without allocating them; `arrays` are those of the file."""
        if found.architecture.n_layers > len(arrays):
            raise ValueError(f"architecture.n_layers is {found.architecture.n_layers}, more than there are weights")
        nothing: Any = None  # in place of a generator: no number is sampled
        with torch.device("meta"):
            network = cls._network(found.architecture, nothing, PLAIN, found.options)
        return {name: ("F32", tuple(tensor.shape)) for name, tensor in network.state_dict().items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Arrays that are saved."""
        return self._vae.state_dict()

    def _take(self, tensors: dict[str, torch.Tensor]) -> None:
        """Set the arrays that `_tensors` gave."""
        self._vae.load_state_dict(tensors)

    # -------------------------------------------------------------------------------------------------------- details

    @property
    def gene_names(self) -> pd.Index:
        """Names of the modelled genes, (genes,).

        Examples
        --------
        >>> model.gene_names[:2].tolist()
        ['gene_0', 'gene_1']
        """
        return pd.Index(self._schema.genes)

    @property
    def n_latent(self) -> int:
        """Number of dimensions of the latent space.

        Examples
        --------
        >>> model.n_latent == model.get_latent_representation().shape[1]
        True
        """
        return self._vae.architecture.n_latent

    @property
    def batches(self) -> tuple[str, ...]:
        """Names of the batches, in the order of their codes.

        Examples
        --------
        >>> model.batches
        ('batch_0', 'batch_1', 'batch_2')
        """
        return self._schema.categories[0]

    @property
    def likelihood(self) -> Likelihood:
        """Likelihood of the data.

        Examples
        --------
        >>> model.likelihood.name in ("zinb", "nb", "poisson", "normal", "bernoulli")
        True
        """
        return self._vae.likelihood

    @property
    def device(self) -> torch.device:
        """Device of the weights.

        Examples
        --------
        >>> model.device.type in ("cpu", "cuda")
        True
        """
        return self._vae.device

    @property
    def adata(self) -> AnnData:
        """AnnData that the model was built on or loaded with, if it still exists: the model does not keep it.

        For a model of files, their tables: `obs` of all cells and `var`, without counts.

        Examples
        --------
        >>> model.adata is adata
        True
        """
        if self._annotation is None or (found := self._annotation.adata()) is None:
            raise AttributeError("adata")  # `__getattr__` says why
        return found

    @property
    def is_trained(self) -> bool:
        """Whether the model was trained for at least one epoch.

        Examples
        --------
        >>> model.is_trained
        True
        """
        return bool(self._rows)

    if not TYPE_CHECKING:  # mypy would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            raise missing(type(self), name, f"{type(self).__name__!r} object has no attribute {name!r}", self)

    def __repr__(self) -> str:
        a, n_weights = self._vae.architecture, sum(p.numel() for p in self._vae.parameters())
        hidden = " and ".join(map(str, dict.fromkeys(a.widths)))  # the encoder's, the decoder's
        cells = "no data" if self._counts is None else f"{len(self._counts):,} cells"
        state = "not trained: call train()"
        if self._rows:
            state = f"trained for {self._rows[-1]['epoch']} epochs; holds epoch {self._best_epoch}"
            best = [r for r in self._rows if r["epoch"] == self._best_epoch]
            state += f", {best[-1]['split']} {self.objective} {best[-1]['elbo']:.1f} nats per cell" if best else ""
        return (
            f"{self.kind} on {cells}, {a.n_genes:,} genes, {a.n_levels[0]} batch{'es' if a.n_levels[0] > 1 else ''}"
            f"{'' if self._schema.batch_key is None else f' ({self._schema.batch_key!r})'}\n"
            f"  {a.gene_likelihood} likelihood, {a.library} library, dispersion per {a.dispersion}\n"
            f"  {a.n_latent} latent, {a.n_layers} x {hidden} hidden, {n_weights:,} weights on {self.device}"
            f"{f', counts {self._loading}' if self._loading else ''}\n"
            f"  {state}"
        )

    def _cells(self, adata: AnnData | None, indices: Any) -> tuple[Counts, pd.Index]:
        """Counts and names of the cells that a method is called with."""
        counts, names, _ = self._cells_and_table(adata)
        if indices is None:
            return counts, names
        at = numbers_of_cells(indices, "indices", len(counts), names)
        return counts[at], names[at]

    def _cells_and_table(self, adata: Given | None) -> tuple[Counts, pd.Index, pd.DataFrame | None]:
        """Counts, names and `obs` of all cells that a method is called with; no `obs` for the training data."""
        self._check_trained()
        if adata is None and self._counts is None:
            raise ValueError(
                f"This model was loaded without data: pass adata, here or as {self.kind}.load(path, adata)."
            )
        if adata is None:
            return cast(Counts, self._counts), cast(pd.Index, self._cell_names), None
        frame, counts = self._read_given(adata)
        return counts, frame.obs_names, frame.obs

    def _read_given(self, given: Given) -> tuple[AnnData, Counts]:
        """Tables and counts of data for this model."""
        return self._schema.read_given(given)

    def source_of(self, adata: AnnData) -> AnnData | None:
        """None if `adata` holds the training data, else `adata`: what to pass to the other methods as their `adata`.

        The training data are recognised by cell names, counts and covariates. Where the counts are gone, since `X` was
        normalised, names are believed, and where a covariate is gone, counts; either with a warning. The model then
        uses the counts that it keeps.

        Raises
        ------
        TypeError
            `adata` is no AnnData.

        Examples
        --------
        >>> import sccvae
        >>> adata = sccvae.simulate.simulate(100, 30, seed=0)
        >>> model = sccvae.SCCVAE(adata)
        >>> model.source_of(adata.copy()) is None
        True
        >>> model.source_of(adata[:50]).n_obs
        50
        """
        check_adata(adata)
        if self._counts is None:
            return adata
        known = is_training_data(adata, self._schema, self._counts, cast(pd.Index, self._cell_names))
        return None if known else adata

    @property
    def _obs(self) -> pd.DataFrame:
        """Current `obs` of the training data."""
        return cast(Annotation, self._annotation).now()

    def _labels(self, key: Any, obs: pd.DataFrame | None, names: pd.Index, what: str) -> pd.Series:
        """Labels of the cells `names` of a table; None means that of the training data. See `labels_of`."""
        if obs is not None:
            return labels_of(key, obs, names, what)
        try:
            return labels_of(key, self._obs, names, what)
        except KeyError as error:
            more = " That is the AnnData that the model was built on; if a copy of it has the column, pass that: adata."
            raise KeyError(Text(error.args[0] + more)) from None

    def _batch_codes(self, batches: str | Sequence[str] | None) -> list[int | None]:
        """Codes of the named batches; "all" means all unless a batch has that name; `[None]` means each cell's own."""
        if batches is None:
            return [None]
        if isinstance(batches, str) and batches == "all" and "all" not in self.batches:
            return list(range(len(self.batches)))
        names: Iterable[Any] = [batches] if np.isscalar(batches) else batches
        codes: list[int | None] = [self._schema.code_of_batch(name) for name in names]
        if not codes:
            raise ValueError("The list of batches is empty.")
        return codes

    def _draw_profiles(self, n_cells: int, batch: str | Sequence[str] | None, rng: np.random.Generator) -> np.ndarray:
        """Codes of batch and covariates for new cells, in the proportions of the training data."""
        profiles, weights = np.array(self._profiles), np.array(self._frequencies, dtype=float)
        if batch is not None:
            weights[~np.isin(profiles[:, 0], np.array(self._batch_codes(batch)))] = 0
        return profiles[rng.choice(len(profiles), size=n_cells, p=weights / weights.sum())]

    def _generated(
        self, matrix: sp.csr_matrix, codes: np.ndarray, z: np.ndarray, library: np.ndarray | None, start: int = 0
    ) -> AnnData:
        """New cells as an AnnData: covariates and library size in `obs`, z in `obsm["X_sccvae"]`."""
        obs: dict[str, Any] = self._schema.columns_of(codes)
        if library is not None:
            obs["sccvae_library"] = library
            if self._schema.size_factor_key is not None:
                obs[self._schema.size_factor_key] = library / np.exp(self._schema.log_size_offset)
        frame = pd.DataFrame(obs, index=[f"generated-{start + i}" for i in range(len(codes))])
        return AnnData(matrix, obs=frame, var=pd.DataFrame(index=self.gene_names), obsm={"X_sccvae": z})

    def _remember(self, given: Any, frame: AnnData, counts: Counts) -> None:
        """Keep the data for outputs that are given none; later changes of a given AnnData's `obs` are seen."""
        self._counts, self._cell_names = without_contradicted(counts, self._schema), frame.obs_names.copy()
        self._annotation = Annotation(frame, kept=frame is not given)

    def _check_trained(self) -> None:
        if not self._rows:
            raise RuntimeError("The model is not trained yet: call train() first.")


def device_of(device: str | torch.device) -> torch.device:
    """Check that the device exists and return it; `auto` takes a GPU when there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and (number := os.environ.get("LOCAL_RANK", "")).isdigit():  # one GPU for each of torchrun
        device = f"cuda:{number}"
    try:
        device = torch.device(device)
    except RuntimeError:
        expected = "'auto', 'cpu', 'cuda' or another device of torch"
        raise ValueError(f"device is {device!r}; expected {expected}.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but torch finds no CUDA device; pass device='cpu'.")
    return device
