"""The package's own table of scvi-tools' names, in rows that a page can show. Used by the site and by its tests."""

import inspect
from collections.abc import Mapping
from typing import Any

import lookup

EMPTY = (False, {}, [], (), "")  # what `without` takes: nothing is asked for
# Entries that compute our arguments: what they do, by the name of the function.
COMPUTED = {
    "_unlabeled": "`unlabeled` of `SCCVAE`",
    "_library": '`library`: `True` means `"observed"`, `False` means `"lognormal"`',
    "_accelerator": "Accepted if it names the device of the model. Set `device` in the constructor",
    "_devices": "Accepted if it means the one device of the model",
    "_validation_size": "`train_size`: 1 minus this value",
    "_chunk": "`chunk_size`, where the method has it; results do not depend on it",
    "_both_moments": "`return_variance`",
    "_library_size": "Accepted for the median of q(l|x), which is what the method returns",
    "_load_on": "`device`",
    "<lambda>": "`device`",
}
PARTS = {  # heading -> name of a table, or of an entry of a table of tables
    "Constructor": "CONSTRUCTOR",
    "`train`": "TRAIN",
    "`train`, in `datasplitter_kwargs`": "DATA_SPLITTER",
    "All methods with an `adata` argument": "OUTPUT",
}


def captured(entry: Any) -> Mapping[str, Any]:
    """What a function made inside another one remembers."""
    return inspect.getclosurevars(entry).nonlocals


def text_of(entry: Any) -> str:
    """What becomes of an argument."""
    maker, name, kept = entry.__qualname__.split(".")[0], entry.__name__, captured(entry)
    match maker:
        case "anything" | "positive":
            return "Accepted; it makes no difference"
        case "named":
            return f"`{kept['name']}`"
        case "switch":
            return f"`{kept['name']}`: `True` means `{kept['if_true']!r}`, `False` means `{kept['if_false']!r}`"
        case "only" | "without":
            if kept["values"] == EMPTY:
                return kept["why"]
            return f"Accepted as {' or '.join(f'`{v!r}`' for v in kept['values'])}. {kept['why']}"
        case "_warmup":
            return f"`kl_warmup`, as a fraction of the {kept['unit']} of the run"
        case "_all_of":
            return f"A dictionary of {kept['what']}, each taken by the same rules"
    return COMPUTED[name]


def tables() -> dict[str, list[tuple[str, str]]]:
    """Heading -> rows of a name of scvi-tools and what stands for it here. Raises for an entry without a text."""
    names, attributes = lookup.module("scvi_names"), lookup.module("scvi_attributes")
    found = {heading: getattr(names, table) for heading, table in PARTS.items()}
    found |= {f"`{method}`": table for method, table in (names.OUTPUTS | names.STORAGE).items()}
    rows = {heading: [(name, text_of(entry)) for name, entry in table.items()] for heading, table in found.items()}
    rows["Attributes and methods of a model"] = [
        (name, text.format(kind="SCCVAE")) for name, text in attributes.ATTRIBUTES.items()
    ]
    rows["Names of the package"] = list(attributes.PACKAGE.items())
    return rows
