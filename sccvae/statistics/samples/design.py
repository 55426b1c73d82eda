"""Designs: rows of samples and groups, the linear model of each, and why a design cannot be tested."""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from sccvae.validation.wording import listed_names

LEAST_CELLS = 5  # of a sample in a group; a log ratio of fewer cells is mostly noise
FEW = 3  # samples of a group, up to which a warning is issued

Kind = Literal["between", "paired", "partly paired"]


class Design(NamedTuple):
    """Linear model of a comparison: one row for each sample in each group.

    Attributes
    ----------
    kind
        `between`: no sample is in both groups. `paired`: all samples are in both. `partly paired`: some are.
    nuisance
        (rows, columns): intercept and covariates, or an intercept for each sample of a paired design.
    group
        (rows,) 1.0 for group 1, 0.0 for group 2.
    sample
        (rows,) number of the sample.
    """

    kind: Kind
    nuisance: np.ndarray
    group: np.ndarray
    sample: np.ndarray

    @property
    def degrees(self) -> int:
        """Return the residual degrees of freedom."""
        return len(self.group) - self.nuisance.shape[1] - 1

    @property
    def n_samples(self) -> tuple[int, int]:
        """Return the numbers of samples in group 1 and in group 2."""
        first = int(self.group.sum())
        return first, len(self.group) - first


def check_covariates(covariates: pd.DataFrame, sample: np.ndarray) -> pd.DataFrame:
    """Return one row of covariates for each sample, in sorted order of the samples.

    Parameters
    ----------
    covariates
        One column for each covariate, a row for each cell.
    sample
        (cells,) name of each cell's sample.

    Raises
    ------
    ValueError
        A sample has two values of a covariate, or all samples have the same value.
    """
    grouped = covariates.groupby(sample, observed=True, sort=True)
    for name in covariates.columns:
        distinct = grouped[name].nunique()
        if (distinct > 1).any():
            odd = distinct.index[distinct > 1][0]
            raise ValueError(
                f"covariates: sample {odd!r} has {distinct[odd]} values of {name!r}; expected one value for each "
                "sample. Leave that covariate out, or correct the column."
            )
        if covariates[name].nunique() < 2:
            raise ValueError(
                f"covariates: {name!r} has the value {covariates[name].iloc[0]!r} in all samples; expected at least "
                "two values. Leave it out."
            )
    return grouped.first()


def columns_of(covariates: pd.DataFrame) -> np.ndarray:
    """Return the columns of a linear model, (rows, columns): numbers standardised, categories as indicators.

    Columns without variance among these rows are left out.
    """
    columns = [np.zeros((len(covariates), 0))]
    for name in covariates.columns:
        values = covariates[name]
        if values.dtype.kind in "iuf" and values.nunique() > 2:
            part = values.to_numpy(dtype=float)[:, None]
            part = (part - part.mean()) / part.std()
        else:
            part = pd.get_dummies(pd.Categorical(values.astype(str)), drop_first=True).to_numpy(dtype=float)
        columns.append(part[:, part.std(0) > 0] if len(part) else part)
    return np.hstack(columns)


def design_of(sample: np.ndarray, group: np.ndarray, covariates: pd.DataFrame | None = None) -> Design:
    """Return the design of rows: a fixed effect for each sample if all are in both groups, else the covariates.

    Parameters
    ----------
    sample
        (rows,) number of the sample.
    group
        (rows,) 1 or 2.
    covariates
        A row of covariates for each row; constant within a sample, so a paired design does not need them.

    Raises
    ------
    ValueError
        A group has fewer than two samples; covariates determine the groups; no residual degree of freedom is left.
    """
    sizes = [int((group == number).sum()) for number in (1, 2)]
    for which, size in enumerate(sizes, 1):
        if size < 2:
            raise ValueError(
                f"sample_key: group {which} has {size} sample{'s' * (size != 1)} with at least {LEAST_CELLS} cells; "
                "expected at least two in each group. Without replicates the variation between samples is unknown, "
                "so no p-value exists. Without sample_key, cells are compared; that describes these samples only."
            )
    names, number = np.unique(sample, return_inverse=True)
    both = np.bincount(number) == 2
    indicator = (group == 1).astype(float)
    if both.all():
        kind, nuisance = "paired", np.eye(len(names))[number]
    else:
        extra = np.zeros((len(group), 0)) if covariates is None else columns_of(covariates)
        kind, nuisance = "partly paired" if both.any() else "between", np.column_stack([np.ones(len(group)), extra])
    design = Design(kind, nuisance, indicator, number)  # type: ignore[arg-type]
    _check_rank(design, covariates)
    return design


def _check_rank(design: Design, covariates: pd.DataFrame | None) -> None:
    full = np.column_stack([design.nuisance, design.group])
    which = "" if covariates is None else f" {listed_names(covariates.columns)}"
    if np.linalg.matrix_rank(full) < full.shape[1]:
        raise ValueError(
            f"covariates{which} and the groups are collinear in {len(full)} samples; expected groups that the "
            "covariates do not determine. Leave a covariate out."
        )
    if design.degrees < 1:
        raise ValueError(
            f"covariates{which} leave {design.degrees} residual degrees of freedom in {len(full)} samples; expected at "
            "least one. Leave a covariate out."
        )


def whitening(design: Design, residuals: np.ndarray) -> np.ndarray | None:
    """Return a matrix, (rows, rows), that decorrelates rows of the same sample; None if no rows are correlated.

    The correlation is common to all genes (Smyth, Michaud & Scott 2005, https://doi.org/10.1093/bioinformatics/bti270).

    Parameters
    ----------
    residuals
        (rows, genes) residuals of the linear model.
    """
    if design.kind != "partly paired":
        return None
    same = (design.sample[:, None] == design.sample).astype(float) - np.eye(len(design.sample))
    basis, _ = np.linalg.qr(np.column_stack([design.nuisance, design.group]))
    left = np.eye(len(same)) - basis @ basis.T
    squares = (residuals**2).sum(0)
    weights = 1 / np.maximum(squares + np.median(squares), 1e-12)
    found = (((weights * residuals) @ residuals.T) * same).sum() / (weights * squares).sum()
    # Residuals have the covariance left (I + r same) left: solve for r the ratio of its entries to its trace.
    within = left @ same @ left
    slope = found * np.trace(within) - (within * same).sum()
    correlation = float(np.clip(((left * same).sum() - found * np.trace(left)) / slope, 0, 0.95))
    values, vectors = np.linalg.eigh(np.eye(len(same)) + correlation * same)
    return vectors @ np.diag(values**-0.5) @ vectors.T
