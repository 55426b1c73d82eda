"""Checks of the description of a saved model: type and range of every field, before a model is made.

Types are the annotations of the fields. An unknown field of the architecture, of the schema or of the options is an
error, because it could change the meaning of the model. Other unknown fields are ignored, because nothing reads them.
"""

import dataclasses
import math
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from sccvae.corruption import CORRUPTIONS
from sccvae.data.schema import Schema
from sccvae.modules.architecture import Architecture
from sccvae.modules.likelihoods import LIKELIHOODS
from sccvae.statistics.calibration import Calibration

_OPTIONAL = {"known_batches", "reference_epochs", "gene_key", "least_genes"}  # options that a model may lack
_OPTIONS: dict[str, dict[str, Any]] = {  # by class: arguments of its network besides the architecture
    "SCCVAE": {"known_batches": int, "reference_epochs": int, "gene_key": str | None, "least_genes": float},
    "Autoencoder": {"scale": float | None},
    "DenoisingAutoencoder": {"scale": float | None, "corruption": tuple[dict[str, Any], ...], "continuation": float},
}


class Description(NamedTuple):
    """Checked contents of a description."""

    schema: Schema
    architecture: Architecture
    options: dict[str, Any]
    profiles: tuple[tuple[int, ...], ...]
    frequencies: tuple[int, ...]
    seed: int
    history: list[dict[str, Any]]
    best_epoch: int
    calibration: Calibration | None = None


def understood(found: dict[str, Any], kind: str) -> Description:
    """Check the description of a model of the class `kind`. Raises ValueError or TypeError that names the field."""
    schema = _made(Schema, _field(found, "schema", dict[str, Any]), "schema")
    architecture = _made(Architecture, _field(found, "architecture", dict[str, Any]), "architecture")
    _check_together(schema, architecture)
    options = _options(found.get("options", {}), kind, architecture)
    profiles = _field(found, "profiles", tuple[tuple[int, ...], ...])
    frequencies = _field(found, "frequencies", tuple[int, ...])
    _check_profiles(profiles, frequencies, architecture.n_levels)
    seed, best_epoch = _field(found, "seed", int), _field(found, "best_epoch", int)
    history = _history(_field(found, "history", tuple[dict[str, Any], ...]))
    last = history[-1]["epoch"] if history else 0
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; expected 0 or more")
    if not 0 <= best_epoch <= last:
        raise ValueError(f"best_epoch is {best_epoch}; expected an epoch of the history, of {last}")
    _expect("versions", found.get("versions", {}), dict[str, str])
    calibration = None
    if found.get("calibration") is not None:
        calibration = _made(Calibration, _field(found, "calibration", dict[str, Any]), "calibration")
        if not calibration.temperature > 0 or len(calibration.densities) < 1:
            raise ValueError(f"calibration.temperature is {calibration.temperature}; expected more than 0")
        if len(calibration.batches) not in (0, len(calibration.scores)):
            found_and = f"{len(calibration.batches)} batches of {len(calibration.scores)} scores"
            raise ValueError(f"calibration has {found_and}; expected one for each")
    return Description(schema, architecture, options, profiles, frequencies, seed, history, best_epoch, calibration)


def _check_together(schema: Schema, a: Architecture) -> None:
    """Check that fields on the same subject agree."""
    keys, names = (schema.batch_key, *schema.categorical_covariate_keys), schema.genes
    support = LIKELIHOODS[a.gene_likelihood].support
    same = {
        "the number of genes named, and n_genes": (len(names), a.n_genes),
        "the genes named, and those that differ": (len(names), len(set(names))),
        "the numbers of categories, and n_levels": (tuple(map(len, schema.categories)), a.n_levels),
        "the labels named, and n_labels": (len(set(schema.labels)), a.n_labels),
        "the columns with categories, and n_levels": (len(keys), len(a.n_levels)),
        "the continuous covariates, and n_continuous": (len(schema.continuous_covariate_keys), a.n_continuous),
        "the continuous covariates, and their means": (len(schema.continuous_covariate_keys), len(schema.means)),
        "the continuous covariates, and their scales": (len(schema.continuous_covariate_keys), len(schema.scales)),
        "the support, and that of gene_likelihood": (schema.support, support),
    }
    for what, (one, other) in same.items():
        if one != other:
            raise ValueError(f"{what} do not match: {one!r}, {other!r}")
    if schema.condition_key is not None and schema.condition_key not in schema.categorical_covariate_keys:
        raise ValueError(f"condition_key is {schema.condition_key!r}; expected one of the categorical covariates")
    if not names or not all(schema.categories):
        raise ValueError("genes or categories are empty; expected at least one of each")
    if any(len(set(names)) < len(names) for names in schema.categories):
        raise ValueError("a category is named twice")
    if not all(scale > 0 for scale in schema.scales):
        raise ValueError(f"scales are {schema.scales}; expected more than 0")


def _options(found: Any, kind: str, a: Architecture) -> dict[str, Any]:
    expected = _OPTIONS[kind]
    _expect("options", found, dict[str, Any])
    if not set(expected) - _OPTIONAL <= set(found) <= set(expected):
        raise ValueError(f"options are {sorted(found)}; expected {sorted(expected)}")
    for name, value in found.items():
        _expect(f"options.{name}", value, expected[name])
    if not 0 <= found.get("known_batches", 0) <= a.n_levels[0]:
        raise ValueError(f"options.known_batches is {found['known_batches']}; expected 0 to {a.n_levels[0]} batches")
    if (scale := found.get("scale")) is not None and not (scale > 0 and a.gene_likelihood == "normal"):
        raise ValueError(f"options.scale is {scale}; expected more than 0, and for the normal likelihood alone")
    if not 0 <= found.get("continuation", 0.0) < 1:
        raise ValueError(f"options.continuation is {found['continuation']}; expected a probability below 1")
    for fields in found.get("corruption", ()):
        process = fields.get("process")
        if process not in CORRUPTIONS:
            raise ValueError(f"options.corruption names {process!r}; expected one of {', '.join(CORRUPTIONS)}")
        if CORRUPTIONS[process].support != LIKELIHOODS[a.gene_likelihood].support:
            raise ValueError(f"options.corruption names {process}, which is not for {a.gene_likelihood} data")
        _made(CORRUPTIONS[process], {k: v for k, v in fields.items() if k != "process"}, f"options.{process}")
    if kind != "SCCVAE" and a.dispersion != "gene":
        raise ValueError(f"architecture.dispersion is {a.dispersion!r}; expected 'gene', as every {kind} has")
    return dict(found)


def _check_profiles(profiles: tuple, frequencies: tuple, n_levels: tuple[int, ...]) -> None:
    if len(profiles) != len(frequencies) or not profiles:
        raise ValueError(f"there are {len(profiles)} profiles and {len(frequencies)} frequencies; expected one of each")
    for profile in profiles:
        if len(profile) != len(n_levels) or not all(0 <= code < n for code, n in zip(profile, n_levels, strict=True)):
            raise ValueError(f"profiles hold {profile}; expected codes below {n_levels}")
    if len(set(profiles)) < len(profiles):
        raise ValueError("profiles hold one twice")
    if min(frequencies) < 1:
        raise ValueError(f"frequencies hold {min(frequencies)}; expected numbers of cells, at least 1")


def _history(rows: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    epoch = 1
    for row in rows:
        numbers = {name: value for name, value in row.items() if name not in ("epoch", "split")}
        _expect("history", numbers, dict[str, float])
        if "elbo" not in numbers or row.get("split") not in ("training", "validation"):
            raise ValueError("history has a row without an elbo or a split; expected 'training' or 'validation'")
        if _expect("history.epoch", row.get("epoch"), int) < epoch:
            raise ValueError(f"history has epoch {row['epoch']} after {epoch}; expected epochs in order")
        epoch = row["epoch"]
    return [dict(row) for row in rows]


# -------------------------------------------------------------------------------------------------------------- types


def _made(kind: type, fields: dict[str, Any], what: str) -> Any:
    """Make a dataclass from its fields, after a check of their types."""
    hints = get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name, field in known.items():
        if name in fields:
            _expect(f"{what}.{name}", fields[name], hints[name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{what}.{name} is missing")
    for name in fields:
        if name not in known:
            raise ValueError(f"{what} has the field {name!r}, which is unknown in this version of sccvae")
    return kind(**fields)


def _field(found: dict[str, Any], name: str, hint: Any) -> Any:
    if name not in found:
        raise ValueError(f"{name} is missing")
    return _expect(name, found[name], hint)


def _expect(name: str, value: Any, hint: Any) -> Any:
    """Check that a value has the type, and return it. An integer is also a float; True is not a number."""
    if not _fits(value, hint):
        shown = text if len(text := repr(value)) <= 60 else text[:60] + "..."
        expected = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
        raise ValueError(f"{name} is {shown}; expected {expected}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = args[:1] * len(value) if args[1:] == (...,) else args
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if hint in (int, float) and type(value) is int:
        return -(2**63) <= value < 2**64
    if hint is float:
        return type(value) is float and math.isfinite(value)
    return type(value) is hint if hint is not None else value is None
