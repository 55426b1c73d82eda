"""Analyses by a trained `SCCVAE`: differential expression, diagnosis, report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.counts import Counts
from sccvae.inference import posterior
from sccvae.models.outputs import OutputsModel
from sccvae.statistics import diagnostics, differential_expression
from sccvae.statistics.predictive_checks import predictive_check
from sccvae.validation.arguments import MOST, SEEDS, checked_seed, flag, limit, positive, unless_none, whole


class AnalysisModel(OutputsModel):
    """The analyses of an `SCCVAE`."""

    def _own_checks(self, counts: Counts, seed: int) -> list[diagnostics.Check]:
        """Make the checks of `diagnose` that a class of models has besides."""
        return []

    def _own_history(self) -> pd.DataFrame:
        """History of the training on these cells."""
        return self.history

    def _shown_mapping(self, adata: AnnData | None, seed: int) -> dict[str, Any] | None:
        """Arguments of `report.Mapped` for a mapped model; None for others."""
        return None

    def differential_expression(
        self,
        adata: AnnData | None = None,
        groupby: str | Sequence[Any] | pd.Series | None = None,
        group1: str | Sequence[str] | None = None,
        group2: str | None = None,
        idx1: Any = None,
        idx2: Any = None,
        mode: differential_expression.Mode = "change",
        delta: float | None = 0.25,
        *,
        batch_correction: bool = True,
        pseudocount: float | None = None,
        fdr_target: float = 0.05,
        n_samples: int = 200,
        max_cells: int = 3000,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Find genes whose mean normalised expression differs between groups of cells, by posterior samples.

        After Boyeau et al. 2019 (https://doi.org/10.1101/794289); `sccvae.statistics.differential_expression`
        describes the differences from it, and the reasons.

        Parameters
        ----------
        groupby, group1, group2
            Column of `obs`, or a label for each cell; group or groups to compare (None: each); group to compare with
            (None, or "Rest" unless a group has that name: all other cells).
        idx1, idx2
            Instead of `groupby`: numbers or boolean masks of the cells of two groups; None as `idx2` takes all others.
        mode
            `change`: probability that ``|log2 fold change| > delta``, also against most genes. `vanilla`, the default
            of scvi-tools: Bayes factor of group 1 above group 2.
        delta
            Threshold of the fold change, in log2 units; None fits it to the fold changes of all genes.
        batch_correction
            Decode both groups in all batches, and compare counts within batches. The default of scvi-tools is False.
        pseudocount
            Added to the mean expression (which sums to 1) of both groups; None takes it from the data.
        n_samples, max_cells
            Posterior samples; cells decoded per group. Memory: 4 bytes x groups x samples x genes, and a chunk of
            cells.

        Returns
        -------
        Genes sorted by `bayes_factor` (log odds), with the columns `proba_de`, `proba_not_de`; `lfc_mean`, `_median`,
        `_std`, `_min`, `_max`, log2 of group 1 over group 2; for each group, `scale` (mean normalised expression),
        `raw_mean` (counts per cell), `non_zeros_proportion`; the `delta` and `pseudocounts` that were used;
        `is_de_fdr_0.05`, the genes called at an expected false discovery rate of `fdr_target`. With `groupby`, also
        `comparison`, such as "B vs Rest", `group1`, `group2`. All other cells are "Rest", or "Rest (all other cells)"
        if a group has that name. `vanilla` has `proba_m1`, `proba_m2`, and neither calls nor `delta` and
        `pseudocounts`.

        Raises
        ------
        ValueError, KeyError, TypeError
            A group is unknown, empty or compared with itself; the likelihood is not of counts.

        Examples
        --------
        One cell type against all other cells, and the genes called at a false discovery rate of 5 %:

        >>> table = model.differential_expression(groupby="cell_type", group1="type_1")
        >>> called = table[table["is_de_fdr_0.05"]]
        >>> table["comparison"].unique().tolist()
        ['type_1 vs Rest']

        Two sets of cells:

        >>> table = model.differential_expression(idx1=adata.obs["gradient"] > 0.8, idx2=adata.obs["gradient"] < 0.2)
        >>> len(table)
        50
        """
        if self.likelihood.support != "counts":
            raise ValueError(
                f"differential_expression needs a count likelihood; found gene_likelihood={self.likelihood.name!r}, "
                "expected 'zinb', 'nb' or 'poisson'."
            )
        options = differential_expression.Options(mode, delta, pseudocount, fdr_target)
        n_samples, seed = whole("n_samples", n_samples, least=10, most=MOST), checked_seed(seed)
        max_cells, chunk_size = limit("max_cells", max_cells), unless_none(limit, "chunk_size", chunk_size)
        counts, names, obs = self._cells_and_table(adata)
        labels = None if groupby is None else self._labels(groupby, obs, names, "groupby")
        design = differential_expression.design_of(labels, group1, group2, idx1, idx2, len(counts), names)
        batches = self._batch_codes(self.batches if flag("batch_correction", batch_correction) else None)
        groups = posterior.group_expression(
            self._vae, counts, design.cells, batches, n_samples, max_cells=max_cells, chunk_size=chunk_size, seed=seed
        )
        return differential_expression.tables(groups, design, self.gene_names, options, seed=seed)

    def diagnose(
        self,
        adata: AnnData | None = None,
        *,
        batch_key: str | Sequence[Any] | pd.Series | None = None,
        n_samples: int = 10,
        n_neighbors: int = 50,
        max_cells: int | None = 20_000,
        seed: int = 0,
    ) -> diagnostics.Diagnosis:
        """Check the fit of the model, its training, the mixing of batches, and cells that it explains badly.

        Parameters
        ----------
        {new_data}
        batch_key
            Column of `obs`, or a label for each cell: batches that should be mixed. None takes the batches of the
            model.
        n_samples
            Samples of z and l for each cell.
        n_neighbors
            Nearest cells of each cell, among which batches are counted.
        max_cells
            Check a random sample of this many cells if there are more; None checks all.

        Returns
        -------
        A `Diagnosis`: print it, or read `table`, `sentences`, `warnings` and the arrays that `pl.diagnostics` draws.
        It covers active latent units (Burda, Grosse & Salakhutdinov 2016), convergence, the held-out gap, posterior
        predictive checks of zero fractions, variances and calibration (counts only), batches that are not mixed, and
        cells with a low likelihood given their library size. Of a model that was made by `load_query_data` also: cells
        that are new to the reference, missing genes, depth below the reference's, and large offsets of new batches.

        Raises
        ------
        RuntimeError, ValueError, KeyError
            The model is not trained, or holds no data; there is no such column.

        Examples
        --------
        >>> import sccvae
        >>> model = sccvae.SCCVAE(sccvae.simulate.simulate(300, 50, seed=0), batch_key="batch")
        >>> model.train(max_epochs=1)
        >>> "train longer" in model.diagnose().warnings[0]
        True
        """
        n_samples, n_neighbors = positive("n_samples", n_samples), limit("n_neighbors", n_neighbors)
        max_cells, seed = unless_none(limit, "max_cells", max_cells), checked_seed(seed)
        counts, names, obs = self._cells_and_table(adata)
        if len(counts) < 10:
            raise ValueError(f"diagnose() found {len(counts)} cells; expected at least 10.")
        if batch_key is not None:
            batches = self._labels(batch_key, obs, names, "batch_key")
        else:
            batches = pd.Series(np.array(self.batches)[counts.codes[:, 0]], index=names)
        known = batch_key is None or batch_key == self._schema.batch_key
        if max_cells is not None and len(counts) > max_cells:
            some = np.sort(np.random.default_rng(seed).choice(len(counts), max_cells, replace=False))
            counts, names, batches = counts[some], names[some], batches.iloc[some]
        genes = ranks = None
        vae, measured, gene_names = self._measured(counts)
        if self.likelihood.support == "counts":
            draws = posterior.count_distributions(vae, measured, n_samples=n_samples, seed=seed)
            genes, ranks = predictive_check(draws, measured.matrix, gene_names, n_samples=n_samples, seed=seed)
        log_likelihood, kl, _ = posterior.elbo_terms(vae, measured, seed=seed)
        return diagnostics.diagnosis(
            *posterior.latent_moments(self._vae, counts),
            log_likelihood=log_likelihood,
            kl=kl,
            log_size=counts.log_total,
            names=names,
            genes=genes,
            ranks=ranks,
            batches=batches,
            batches_known=known,
            n_neighbors=n_neighbors,
            history=self._own_history(),
            thinned=self._vae.thinning > 0,
            more=self._own_checks(counts, seed),
        )

    def report(
        self,
        path: str | os.PathLike,
        adata: AnnData | None = None,
        *,
        batch_key: str | None = None,
        label_key: str | None = None,
        title: str | None = None,
        max_cells: int = 20_000,
        seed: int = 0,
    ) -> None:
        """Write an HTML report: data, embedding, scores, training, diagnostics, parameters.

        The report is one file with its figures, and loads nothing from a network. An existing file is replaced. Of a
        model that was made by `load_query_data` it also shows the mapping: new cells on the UMAP of the reference's
        cells, labels with the reasons why some are not accepted, novelty, and checks in words. The reference's cells
        are drawn if the reference is in memory or was saved by ``save(path, with_reference=True)``.

        Parameters
        ----------
        path
            File to write, such as `report.html`.
        {new_data}
        batch_key, label_key
            Columns of `obs` with batches (None takes that of the model) and with cell types; the embedding is drawn and
            scored by them. Labels of mapped cells are compared with `label_key`, as their true labels.
        title
            Heading; None states the numbers of cells and genes.
        max_cells
            Draw, score and diagnose a random sample of this many cells if there are more.

        Raises
        ------
        RuntimeError, ValueError, KeyError, OSError
            The model is not trained, or holds no data; there is no such column; `path` cannot be written.

        Examples
        --------
        >>> model.report("report.html", label_key="cell_type", title="Example")
        """
        from sccvae import report  # here, because it imports matplotlib and scikit-learn

        report.checked_path(path)
        max_cells, seed = limit("max_cells", max_cells), checked_seed(seed, most=SEEDS)
        counts, names, obs = self._cells_and_table(adata)
        for what, key in (("batch_key", batch_key), ("label_key", label_key)):
            if not isinstance(key, str | None):
                raise TypeError(f"{what} is a {type(key).__name__}; expected the name of a column of adata.obs.")
        batch_key = self._schema.batch_key if batch_key is None else batch_key
        columns = {key: self._labels(key, obs, names, "key") for key in (batch_key, label_key) if key is not None}
        _, measured, genes = self._measured(counts)
        shown = self._shown_mapping(adata, seed)
        what = "Integration" if shown is None else "Mapping"
        text = report.page(
            AnnData(
                measured.matrix,
                obs=pd.DataFrame(columns, index=names),
                var=pd.DataFrame(index=genes),
                obsm={"X_sccvae": posterior.latent(self._vae, counts)},
            ),
            self.diagnose(adata, batch_key=batch_key, max_cells=max_cells, seed=seed),
            self.describe(),
            title=title or f"{what} of {len(counts):,} cells and {measured.n_genes:,} genes",
            summary=repr(self),
            batch_key=batch_key,
            label_key=label_key,
            counts=self.likelihood.support == "counts",
            max_cells=max_cells,
            seed=seed,
            mapped=None if shown is None else report.Mapped(**shown),
        )
        report.write(path, text)
