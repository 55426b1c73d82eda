"""Analyses by a trained `SCCVAE`: differential expression, diagnosis, report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from sccvae.data.columns import position_of
from sccvae.data.counts import Counts
from sccvae.inference import conditions, correction, posterior, sums
from sccvae.models.outputs.generation import GenerationModel
from sccvae.statistics import diagnostics
from sccvae.statistics.checks.predictive import predictive_check
from sccvae.statistics.differential_expression import groups as over_cells
from sccvae.statistics.differential_expression import tables
from sccvae.statistics.samples import confounding
from sccvae.statistics.samples import tables as over_samples
from sccvae.statistics.samples.design import check_covariates
from sccvae.validation.arguments import (
    MOST,
    SEEDS,
    check_choice,
    checked_seed,
    flag,
    limit,
    positive,
    unless_none,
    whole,
)
from sccvae.validation.wording import warn


class AnalysisModel(GenerationModel):
    """The analyses of an `SCCVAE`."""

    def _own_checks(self, counts: Counts, seed: int) -> list[diagnostics.Check]:
        """Make the checks of `diagnose` that are not of `diagnostics.diagnosis`."""
        if self.likelihood.support != "counts" or len(self.batches) < 2:
            return []
        weight = self._vae.architecture.batch_mixing
        return correction.checks(self._vae, counts, self.gene_names, self.batches, weight, seed)

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
        mode: over_cells.Mode = "change",
        delta: float | None = 0.25,
        *,
        sample_key: str | Sequence[Any] | pd.Series | None = None,
        covariates: Sequence[str] | None = None,
        by: str | Sequence[Any] | pd.Series | None = None,
        adjust: over_samples.Adjust = "within",
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
        describes the differences from it, and the reasons. Cells are the replicates: the table describes these samples.
        With `sample_key`, samples such as donors are the replicates, and the table holds for the population that they
        come from. Pass it to compare conditions.

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
        sample_key
            Column of `obs`, or a label for each cell: sample, such as the donor. Samples in both groups are paired.
            `mode`, `delta`, `batch_correction`, `pseudocount`, `n_samples` and `max_cells` are not used.
        covariates
            Columns of `obs` that are constant within samples, such as the sex, to adjust for. A paired design is
            adjusted already.
        by
            Column of `obs`, or a label for each cell: test each cell type by itself. Types with too few samples are
            left out with a warning.
        adjust
            Adjust p-values `within` each comparison and cell type, or over `all` tests.
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

        With `sample_key`: genes sorted by `pval`, of a moderated t-test with the evidence of other cells or of the
        model's expectation (`sccvae.statistics.samples`); `padj`, the false discovery rate; `lfc_mean`, log2 of group
        1 over group 2, with its standard error `lfc_se` and 95 % interval, `lfc_low` and `lfc_high`;
        `is_de_fdr_0.05`; for each group `n_samples`, `scale`, `raw_mean`, `non_zeros_proportion`; with `by`, the
        column of that name. Genes with fewer than 10 counts are not tested: `pval` is 1, `lfc_mean` 0.

        Raises
        ------
        ValueError, KeyError, TypeError
            A group is unknown, empty or compared with itself; the likelihood is not of counts; with `sample_key`, a
            group has fewer than two samples, or a covariate varies within a sample or determines the groups.

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

        Two conditions, with donors as replicates, in each cell type:

        >>> import sccvae
        >>> cells = sccvae.simulate.simulate(800, 50, seed=0)
        >>> cells.obs["donor"] = [f"donor_{number % 8}" for number in range(800)]
        >>> cells.obs["condition"] = ["a" if number % 8 < 4 else "b" for number in range(800)]
        >>> trained = sccvae.SCCVAE(cells, batch_key="donor")
        >>> trained.train(max_epochs=1)
        >>> table = trained.differential_expression(
        ...     groupby="condition", group1="b", group2="a", sample_key="donor", by="cell_type"
        ... )
        >>> table["n_samples1"].unique().tolist()
        [4]
        """
        self._check_counts("differential_expression")
        options = over_cells.Options(mode, delta, pseudocount, fdr_target)
        n_samples, seed = whole("n_samples", n_samples, least=10, most=MOST), checked_seed(seed)
        max_cells, chunk_size = limit("max_cells", max_cells), unless_none(limit, "chunk_size", chunk_size)
        counts, names, obs = self._cells_and_table(adata)
        labels = None if groupby is None else self._labels(groupby, obs, names, "groupby")
        design = over_cells.design_of(labels, group1, group2, idx1, idx2, len(counts), names)
        check_choice("adjust", adjust, get_args(over_samples.Adjust))
        if sample_key is not None:
            study = self._study(counts, names, obs, design, sample_key, covariates, by, chunk_size)
            column = by if isinstance(by, str) else "by"
            return over_samples.table(
                study, self.gene_names, by=column, adjust=adjust, fdr_target=options.fdr_target, seed=seed
            )
        if covariates is not None or by is not None:
            given = "by" if covariates is None else "covariates"
            raise ValueError(f"{given} needs sample_key, which is None; pass sample_key, the column of the samples.")
        batches = self._batch_codes(self.batches if flag("batch_correction", batch_correction) else None)
        if len(self.batches) > 1 and batch_correction:
            self._warn_of_batches(counts.codes[:, 0], design)
        groups = posterior.group_expression(
            self._vae, counts, design.cells, batches, n_samples, max_cells=max_cells, chunk_size=chunk_size, seed=seed
        )
        return tables.tables(groups, design, self.gene_names, options, seed=seed)

    def _study(
        self,
        counts: Counts,
        names: pd.Index,
        obs: pd.DataFrame | None,
        groups: over_cells.Design,
        sample_key: Any,
        covariates: Any,
        by: Any,
        chunk_size: int | None,
    ) -> over_samples.Study:
        """Sum counts and the model's expectation of them over samples, groups and kinds of cells."""
        samples = pd.Categorical(self._labels(sample_key, obs, names, "sample_key").astype(str))
        kinds = None if by is None else pd.Categorical(self._labels(by, obs, names, "by").astype(str))
        described = None
        if covariates is not None:
            if isinstance(covariates, str) or not all(isinstance(key, str) for key in covariates):
                raise TypeError(f"covariates is {covariates!r}; expected a list of columns of adata.obs, as ['sex'].")
            columns = {key: self._labels(key, obs, names, "covariates").to_numpy() for key in covariates}
            described = check_covariates(pd.DataFrame(columns), np.asarray(samples)) if columns else None
        group = np.full(len(counts), -1)
        for number, cells in enumerate(groups.cells):
            group[cells] = number
        kind = np.zeros(len(counts), dtype=np.int64) if kinds is None else kinds.codes
        keys, unit = np.unique(np.column_stack([kind, samples.codes, group]), axis=0, return_inverse=True)
        unit = unit.ravel()
        observed, detected = sums.observed(counts, unit, len(keys))
        expected = sums.expected(self._vae, counts, np.where(group >= 0, unit, -1), len(keys), chunk_size)
        units = over_samples.Units(keys[:, 0], keys[:, 1], keys[:, 2], np.bincount(unit), observed, expected, detected)
        return over_samples.Study(units, groups, None if kinds is None else tuple(kinds.categories), described)

    def _warn_of_batches(self, batches: np.ndarray, groups: over_cells.Design) -> None:
        """Warn if two groups share no batch: the correction for batches can then remove their difference."""
        held = np.stack([np.bincount(batches[cells], minlength=len(self.batches)) for cells in groups.cells], axis=1)
        for first, second in groups.pairs:
            rest = held.sum(1) - held[:, first] if second is None else held[:, second]
            names = [groups.names[k] if groups.names and k is not None else None for k in (first, second)]
            shown = names[0] or "group 1", names[1] or ("all other cells" if groups.names else "group 2")
            found = confounding.sentence_of_groups(
                shown, np.column_stack([held[:, first], rest]), list(self.batches), "differential_expression"
            )
            if found is not None:
                warn(found)
                return

    def condition_effect(
        self,
        condition: str,
        reference: str,
        adata: AnnData | None = None,
        indices: Any = None,
        *,
        gene_list: Sequence[str] | None = None,
        n_samples: int | None = 25,
        chunk_size: int | None = None,
        seed: int = 0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log2 fold changes between two conditions in each cell: the same embedding, decoded under both.

        The model needs `condition_key`. `tl.condition_effect` adds intervals that include the scatter of samples, and
        tests.

        Parameters
        ----------
        condition, reference
            Values of the column `condition_key`: the fold change is that of the first over the second.
        adata, indices
            As in `get_latent_representation`.
        gene_list
            Genes to return, in this order; None returns all.
        n_samples
            Samples of z for each cell. None decodes the mean of q(z|x); standard deviations are then 0.
        {chunk_size}

        Returns
        -------
        Mean and standard deviation over the samples, (cells, genes) float32 each, in log2 units. A hundredth of a
        molecule per cell is added to both expressions, so that genes without expression have no fold change.

        Raises
        ------
        ValueError, RuntimeError
            The model has no condition, or does not know this one; it is not trained.

        Examples
        --------
        >>> import sccvae
        >>> cells = sccvae.simulate.simulate(300, 50, seed=0)
        >>> cells.obs["drug"] = np.where(np.arange(300) % 2, "drug", "none")
        >>> treated = sccvae.SCCVAE(cells, batch_key="batch", condition_key="drug")
        >>> treated.train(max_epochs=1)
        >>> mean, sd = treated.condition_effect("drug", "none", gene_list=["gene_1"], n_samples=5)
        >>> mean.shape
        (300, 1)
        """
        column, key = self._schema.condition, self._schema.condition_key
        if column < 0:
            raise ValueError("condition_effect found a model without a condition: train one with condition_key=.")
        known = self._schema.categories[column]
        levels = tuple(position_of(name, known, "condition", key) for name in (condition, reference))
        if levels[0] == levels[1]:
            raise ValueError(f"condition and reference are both {condition!r}; expected two different conditions.")
        n_samples, seed = unless_none(positive, "n_samples", n_samples), checked_seed(seed)
        chunk_size = unless_none(limit, "chunk_size", chunk_size)
        counts, _ = self._cells(adata, indices)
        genes = None if gene_list is None else self._schema.positions_of_genes(gene_list)
        shape = (2, len(counts), counts.n_genes if genes is None else len(genes))
        mean, sd = np.empty(shape, dtype=np.float32)
        options = {"n_samples": n_samples, "seed": seed, "chunk_size": chunk_size}
        for rows, *of_chunk in conditions.effects(self._vae, counts, column, levels, genes, **options):
            mean[rows], sd[rows] = of_chunk
        return mean, sd

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
        cells with a low likelihood given their library size. With batches also signs of over-correction: neighbours
        that a batch shows by itself, kinds that one batch alone holds and that were drawn to others, and markers that
        vanish. Of a model that was made by `load_query_data` instead: cells that are new to the reference, missing
        genes, depth below the reference's, and large offsets of new batches.

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
