"""Tables and figures of README.md and docs/ from the rows in results/: `make tables`.

    python benchmarks/tables.py [--check]

In README.md, docs/*.md and docs/experiments/*.md a table stands between `<!-- table: NAME -->` and `<!-- end -->`. What
stands there is replaced by the table that TABLES makes of the rows, or, of `experiments/NAME`, by a table of
`results/experiments/NAME.jsonl`. docs/scaling.png is drawn when `results/scaling.jsonl` holds measured rows.

A cell shows the mean over seeds (of times and memory the median over repeats) of the rows with the newest commit of
sccvae. Rows that were copied from the text of version 0.1.0 have no date: they are the oldest, and are shown with the
digits that they had there. The best of a data set
is in bold type.

`--check` writes nothing, and ends with status 1 if a document holds another table than the rows give.
"""

import argparse
import graphlib
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

from rows import FOLDER, RESULTS, read

ROOT = FOLDER.parent
MARK = re.compile(r"(?P<begin><!-- table: (?P<name>[\w/-]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
# measure: heading, digits, whether lower is better; of times and memory the median is shown, with four digits
MEASURES: dict[str, tuple[str, int | None, bool]] = {
    "thinned_nll": ("held-out NLL", 1, True),
    "thinned_nll_rho": ("held-out NLL of ρ", 1, True),
    "elbo": ("held-out ELBO", 1, False),
    "best_elbo": ("held-out ELBO", 2, False),
    "ari": ("ARI", 3, False),
    "nmi": ("NMI", 3, False),
    "knn_acc": ("15-NN accuracy", 3, False),
    "knn_corr": ("15-NN correlation", 3, False),
    "bio": ("scIB biology", 3, False),
    "batch": ("scIB batch", 3, False),
    "total": ("scIB total", 3, False),
    "accuracy": ("accuracy", 3, False),
    "agreement": ("agreement", 2, False),
    "spearman": ("Spearman", 3, False),
    "given_depth": ("given depth", 3, False),
    "within": ("within lineages", 3, False),
    "auprc": ("AUPRC", 3, False),
    "fdp": ("false, mean", 3, True),
    "fdp_max": ("false, largest", 3, True),
    "power": ("found", 3, False),
    "train_s": ("training (s)", None, True),
    "s_per_group": ("per group (s)", None, True),
    "below_05": ("p < 0.05", 3, True),
    "some_call": ("some call", 3, True),
    "found": ("found", 2, False),
    "others_called": ("others called", 3, True),
    "auroc": ("AUROC", 2, False),
    "auc": ("AUC", 3, True),
    "auc_sum": ("AUC of summaries", 3, True),
    "mmd": ("MMD", 3, True),
    "coverage": ("coverage", 3, False),
    "spurious": ("spurious", 3, True),
    "s_per_1000": ("s per 1,000", None, True),
    "log_likelihood": ("nats per image", 2, False),
    "zeros_inside": ("genes with zeros inside", 3, False),
    "acc": ("accuracy", 3, False),
    "f1": ("macro F1", 3, False),
    "ece": ("calibration error", 3, True),
    "knn_mix": ("mixing", 2, False),
    "novel_auc": ("AUC of new kind", 3, False),
    "novel_found": ("new kind found", 2, False),
    "known_kept": ("others accepted", 2, False),
    "any": ("some call", 3, True),
    "tpr": ("found", 3, False),
    "lfc_bias": ("bias", 2, False),
    "elsewhere": ("called elsewhere", 5, True),
    "purity": ("neighbours of its type", 2, False),
    "alarm": ("reported", 2, False),
    "false": ("others reported", 2, True),
    "total_kept": ("neighbours kept", 2, False),
}
NAMES = {"scvi": "scvi-tools, ZINB", "scvi-tuned": "scvi-tools, ZINB, tuned", "scvi-nb": "scvi-tools, NB, tuned"}
NAMES |= {"harmony": "Harmony", "pca": "PCA", "wilcoxon": "Wilcoxon", "simulated": "simulated"}
INTEGRATED = ("sccvae", "scvi", "scvi-tuned", "scvi-nb", "harmony")
WHOLE = ("cortex", "pbmc_3tech", "celllines_5plates", "hematopoiesis_paul15", "hematopoiesis_spring", "pbmc_8donors")
SCIB = ("bio", "batch", "total")
METHODS = ("sccvae", "scvi", "harmony")
COMPARED = {"thinned_nll": METHODS[:2], "knn_acc": METHODS, "total": METHODS}  # in README.md
GENERATION = {"steps": 50, "rate": 0.2, "epochs": None}  # the defaults of generation.py
NARROW = 6  # so many variants of an experiment are always columns


# ------------------------------------------------------------------------------------------------ rows and their values


def pick(rows: Iterable[dict], **where) -> list[dict]:
    """The rows with these values, of fields or of conditions; of several commits the newest."""
    return newest([row for row in rows if has(row, **where)])


def has(row: dict, **where) -> bool:
    """Whether a row has these values, of fields or of conditions."""
    return all(row.get(name, row["conditions"].get(name)) == value for name, value in where.items())


def newest(rows: list[dict]) -> list[dict]:
    """The rows of the commit that was measured last; copied rows only where there are no others."""
    if not rows:
        return []
    last = max(rows, key=lambda row: row["date"] or "")
    return [row for row in rows if commit(row) == commit(last)]


def last_of_seeds(rows: Iterable[dict], **where) -> list[dict]:
    """The rows with these values; of each seed the one that was measured last, whatever the commit."""
    found: dict[str, dict] = {}
    for row in sorted((row for row in rows if has(row, **where)), key=lambda row: row["date"] or ""):
        found[str(row["seeds"])] = row
    return [found[seeds] for seeds in sorted(found)]


def commit(row: dict) -> tuple:
    return row["date"] is None, row["versions"].get("sccvae_git")


def over(rows: list[dict]) -> float:
    """Mean over seeds; of seconds, milliseconds, MiB and rates the median; the largest of `fdp_max`."""
    values = [row["value"] for row in rows if row["value"] is not None]
    if not values:
        return float("nan")
    if rows[0]["measure"] == "fdp_max":
        return max(values)
    if len(values) == 1:
        return values[0]
    timed = rows[0]["unit"] in ("s", "ms", "MiB", "cells per s")
    return statistics.median(values) if timed else statistics.fmean(values)


def text(rows: list[dict], error: bool = False) -> str:
    """The value of a cell; with its standard error or range where the row has one, or where `error` asks for it."""
    if not rows or (value := over(rows)) != value:
        return ""
    first = rows[0]
    digits = first.get("digits", MEASURES.get(first["measure"], ("", None, False))[1])

    def form(number: float) -> str:
        if digits is None:
            return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"
        return f"{number:,.{digits}f}"

    shown = form(value)
    shown += " %" * (first["unit"] == "%")
    if "low" in first:
        return f"{shown} ({form(first['low'])} to {form(first['high'])})"
    if "error" in first:
        return f"{shown} ± {form(first['error'])}"
    if error and len(rows) > 1:
        values = [row["value"] for row in rows]
        return f"{shown} ± {form(statistics.stdev(values) / len(values) ** 0.5)}"
    return shown


def seeds_of(rows: list[dict]) -> str:
    """Seeds in words: `0 to 2`, `0`; where the text did not name them what it says."""
    if not rows:
        return ""
    if rows[0]["seeds"] is None:
        return rows[0].get("seeds_as_stated", "not stated")
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def count(rows: list[dict]) -> int:
    """Number of seeds."""
    if rows and rows[0]["seeds"] is None:
        return rows[0].get("n_seeds", 1)
    return len({seed for row in rows for seed in row["seeds"]})


def parsed(cell: str) -> float | None:
    found = re.match(r"-?[\d,]*\.?\d+", cell)
    return float(found[0].replace(",", "")) if found else None


def embolden(cells: list[str], lower: bool) -> list[str]:
    """The cells, the first number of the best in bold type; ties all; none if there is one number only."""
    values = [parsed(cell) for cell in cells]
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return cells
    best = min(known) if lower else max(known)
    bold = [re.sub(r"^-?[\d,.]+", r"**\g<0>**", cell) for cell in cells]
    return [b if v == best else c for b, c, v in zip(bold, cells, values, strict=True)]


def markdown(heading: list[str], lines: Iterable[list[str]]) -> str:
    body = [heading, ["---"] * len(heading), *lines]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |").replace("|  |", "| |") for cells in body)


def columns(groups: list[list[str]], lowers: list[bool]) -> list[list[str]]:
    """Rows of one group with the best of each column in bold type."""
    wide = [embolden(list(column), lower) for column, lower in zip(zip(*groups, strict=True), lowers, strict=True)]
    return [list(cells) for cells in zip(*wide, strict=True)]


# ----------------------------------------------------------------------------------------------- quality of integration


def comparison() -> str:
    """README: a row for each data set with cell types; sccvae, the best of scvi-tools' three settings, Harmony."""
    rows, lines = read(RESULTS / "other_datasets.jsonl"), []
    of_scvi = [method for method in INTEGRATED if method.startswith("scvi")]
    for name in WHOLE:
        of_set = [row for row in rows if row["data_set"] == name]
        if not pick(of_set, method="sccvae", measure="knn_acc"):
            continue
        line = [name]
        for measure, methods in COMPARED.items():
            lower = MEASURES[measure][2]
            found = {method: text(pick(of_set, method=method, measure=measure)) for method in INTEGRATED}
            known = [found[method] for method in of_scvi if found[method]]
            found["scvi"] = (min if lower else max)(known, key=parsed) if known else ""
            line += embolden([found[method] for method in methods], lower)
        lines.append(line)
    names = {"sccvae": "sccvae", "scvi": "scvi-tools", "harmony": "Harmony"}
    heading = [
        f"{MEASURES[measure][0]}, {names[method]}" for measure, methods in COMPARED.items() for method in methods
    ]
    return markdown(["data set", *heading], lines)


def scores_table(names: Iterable[str], measures: tuple[str, ...], size: bool) -> str:
    """A row for each data set and method; seeds in a column of their own, or the size of the set in its place."""
    rows, lines = read(RESULTS / "other_datasets.jsonl"), []
    for name in names:
        of_set = [row for row in rows if row["data_set"] == name]
        methods = [method for method in INTEGRATED if any(row["method"] == method for row in of_set)]
        cells = [[text(pick(of_set, method=m, measure=measure)) for measure in measures] for m in methods]
        shown = columns(cells, [MEASURES[measure][2] for measure in measures])
        for i, (method, of_method) in enumerate(zip(methods, shown, strict=True)):
            found = newest([row for row in of_set if row["method"] == method])
            what = found[0]["conditions"]
            label = f"{name}, {what['cells']:,} x {what['genes']:,}" if size else name
            lines.append([label if i == 0 else "", NAMES.get(method, method), str(count(found)), *of_method])
    heading = ["data set" + ", cells x genes" * size, "method", "seeds"]
    return markdown([*heading, *(MEASURES[m][0] for m in measures)], lines)


def integration() -> str:
    return scores_table(WHOLE, ("thinned_nll", "thinned_nll_rho", *SCIB, "ari", "nmi", "knn_acc", "knn_corr"), False)


def other_datasets() -> str:
    names = dict.fromkeys(row["data_set"] for row in read(RESULTS / "other_datasets.jsonl"))
    measures = ("thinned_nll", "thinned_nll_rho", "knn_corr", "knn_acc", "ari", "nmi", *SCIB)
    return scores_table([name for name in names if name not in WHOLE], measures, True)


def downsampled_queries() -> str:
    rows, lines = read(RESULTS / "downsampled_queries.jsonl"), []
    wanted = [("accuracy", k) for k in (1.0, 0.5, 0.25, 0.1)] + [("agreement", k) for k in (0.5, 0.25, 0.1)]
    wanted += [("elbo", k) for k in (1.0, 0.25, 0.1)]
    label = {"thinning=0": "sccvae", "thinning=0.5": "sccvae, `thinning=0.5`", "thinning=0.8": "sccvae, `thinning=0.8`"}
    for name in dict.fromkeys(row["data_set"] for row in rows):
        of_set = [row for row in rows if row["data_set"] == name]
        methods = list(dict.fromkeys(row["method"] for row in of_set))
        cells = [[text(pick(of_set, method=m, measure=what, kept=k)) for what, k in wanted] for m in methods]
        shown = columns(cells, [False] * len(wanted))
        for i, (method, of_method) in enumerate(zip(methods, shown, strict=True)):
            n = str(count(pick(of_set, method=method, measure="accuracy", kept=1.0)))
            lines.append([name if i == 0 else "", label.get(method, method), n, *of_method])
    share = {1.0: "all", 0.5: "1/2", 0.25: "1/4", 0.1: "1/10"}
    return markdown(["data set", "method", "seeds", *(f"{MEASURES[w][0]}, {share[k]}" for w, k in wanted)], lines)


def pseudotime() -> str:
    rows, lines = read(RESULTS / "pseudotime.jsonl"), []
    for genes in ("2000", "all"):
        for root in ("published", "medoid", "progenitors"):
            for method in ("sccvae", "denoised", "pca", "scvi"):
                of_row = newest([r for r in rows if pick([r], genes=genes, root=root, method=method)])
                if not of_row:
                    continue
                by_k = [text(pick(of_row, measure="spearman", k=k)) for k in (10, 15, 30)]
                if of_row[0]["date"] is None:
                    low, high = (text(pick(of_row, measure=f"spearman_{end}")) for end in ("smallest", "largest"))
                else:
                    values = [row["value"] for row in of_row if row["measure"] == "spearman"]
                    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
                others = [text([r for r in of_row if r["measure"] == m]) for m in ("given_depth", "within")]
                name = {"denoised": "sccvae, denoised", "scvi": "scvi-tools"}.get(method, NAMES.get(method, method))
                lines.append([genes, root, name, str(count(of_row)), *by_k, f"{low} to {high}", *others])
    heading = ["genes", "root", "method", "seeds", "k = 10", "k = 15", "k = 30", "range", "given depth"]
    return markdown([*heading, "within lineages"], lines)


def differential(which: str) -> str:
    """`repeats`: the table with most repeats, or rows measured since; `first`: the first one, with seconds."""
    rows, lines = read(RESULTS / "differential.jsonl"), []
    rows = [
        r
        for r in rows
        if r["conditions"].get("table", "repeats") == which and has(r, cells=600, genes=1000, delta=0.25)
    ]
    measures = ["auprc", "fdp", "fdp_max", "power"] + ["train_s", "s_per_group"] * (which == "first")
    for name in dict.fromkeys(row["data_set"] for row in rows):
        of_set = [row for row in rows if row["data_set"] == name]
        methods = [m for m in ("sccvae", "scvi", "wilcoxon") if any(row["method"] == m for row in of_set)]
        for i, method in enumerate(methods):
            cells = [pick(of_set, method=method, measure=measure) for measure in measures]
            label = {"scvi": "scvi-tools"}.get(method, NAMES.get(method, method))
            kind = name.removeprefix("simulated, ") if i == 0 else ""
            lines.append([kind, label, str(count(cells[0])), *map(text, cells)])
    return markdown(["kind", "method", "repeats", *(MEASURES[measure][0] for measure in measures)], lines)


MAPPED = {"sccvae": "sccvae", "logreg": "logistic regression", "pca-knn": "PCA, 15-NN"}
MAPPED |= {"scvi-arches": "scArches", "scanvi-arches": "scANVI, scArches"}


def labelled() -> str:
    """A row for each data set and choice of labels: scores with them, of sccvae and scANVI."""
    rows, lines = read(RESULTS / "labels.jsonl"), []
    names = {"none": "none", "all": "all", "half": "half of them"}
    for name in dict.fromkeys(row["data_set"] for row in rows):
        of_set = [row for row in rows if row["data_set"] == name]
        for i, labels in enumerate(dict.fromkeys(row["conditions"]["labels"] for row in of_set)):
            kind, _, wrong = labels.rpartition("-")
            line = [name if i == 0 else "", names.get(labels, f"{wrong} % wrong, {kind.replace('-', ' ')}")]
            for measure in ("total", "bio"):
                wanted = {"measure": measure, "labels": labels}
                cells = [last_of_seeds(of_set, method=m, **wanted) for m in ("sccvae", "scanvi")]
                line += embolden([text(c, error=True) for c in cells], False)
            line.append(seeds_of(last_of_seeds(of_set, method="sccvae", measure="total", labels=labels)))
            lines.append(line)
    scores = [f"{MEASURES[m][0]}, {who}" for m in ("total", "bio") for who in ("sccvae", "scANVI")]
    return markdown(["data set", "labels", *scores, "seeds of sccvae"], lines)


def mapped() -> str:
    """A row for each task and method."""
    rows = [row for row in read(RESULTS / "mapping.jsonl") if row["conditions"]["part"] == "tasks"]
    measures = ("acc", "f1", "ece", "knn_mix", "novel_auc", "novel_found", "known_kept")
    lines = []
    for name in dict.fromkeys(row["conditions"]["query"] for row in rows):
        of_task = pick(rows, query=name)
        methods = [method for method in MAPPED if pick(of_task, method=method)]
        found = [[text(pick(of_task, method=k, measure=m), error=True) for m in measures] for k in methods]
        values = columns(found, [MEASURES[measure][2] for measure in measures])
        for i, (method, of_method) in enumerate(zip(methods, values, strict=True)):
            label = name if i == 0 else ""
            lines.append([label, MAPPED[method], str(count(pick(of_task, method=method))), *of_method])
    return markdown(["query", "method", "seeds", *(MEASURES[measure][0] for measure in measures)], lines)


def mapped_queries() -> str:
    """A row for each part and method: means over its queries, each with its own reference."""
    rows, lines = [row for row in read(RESULTS / "mapping.jsonl") if row["conditions"]["missing"] is None], []
    measures = ("acc", "f1", "ece", "knn_mix")
    for part, name in (("donors", "pbmc_8donors, each donor"), ("simulated", "simulated, three batches")):
        of_part = [row for row in rows if has(row, part=part)]
        methods = [method for method in MAPPED if pick(of_part, method=method)]
        found = [[text(pick(of_part, method=k, measure=m)) for m in measures] for k in methods]
        values = columns(found, [MEASURES[measure][2] for measure in measures])
        for i, (method, of_method) in enumerate(zip(methods, values, strict=True)):
            queries = len({row["conditions"]["query"] for row in pick(of_part, method=method)})
            lines.append([name if i == 0 else "", MAPPED[method], str(queries), *of_method])
    return markdown(["query", "method", "queries", *(MEASURES[measure][0] for measure in measures)], lines)


def missing_genes() -> str:
    """A row for each query: accuracy and macro F1 by the fraction of genes that it lacks, left out or zeros."""
    rows, lines = [row for row in read(RESULTS / "mapping.jsonl") if row["conditions"]["part"] == "missing"], []
    shares = (0.0, 0.1, 0.3, 0.5)
    for name in dict.fromkeys(row["conditions"]["query"] for row in rows):
        for i, (how, label) in enumerate((("left out", "left out"), ("zeros", "filled with zeros"))):
            cells = [
                text(pick(rows, query=name, method=how, measure=m, missing=k)) for m in ("acc", "f1") for k in shares
            ]
            lines.append([name if i == 0 else "", label, *cells])
    heading = [f"{MEASURES[m][0]}, {100 * k:.0f} %" for m in ("acc", "f1") for k in shares]
    return markdown(["query", "missing genes", *heading], lines)


TESTED = {"sccvae-replicates": "sccvae", "pb-moderated": "moderated t", "pb-deseq2": "DESeq2", "pb-t": "t"}


def donors(part: str) -> str:
    """`main`: between and paired; `only`: means over the types; `sizes`: a row for each size and share."""
    rows, lines = [row for row in read(RESULTS / "donors.jsonl") if row["conditions"]["part"] != "permuted"], []
    signal = ("fdp", "tpr", "auprc", "lfc_bias")
    if part == "main":
        groups: list[tuple[dict, str]] = [({"part": name}, name) for name in ("between", "paired")]
        measures = [("null", "any"), *(("signal", name) for name in signal), ("signal", "seconds")]
    elif part == "only":
        types = dict.fromkeys(row["conditions"]["only"] for row in rows if row["conditions"]["part"] == "only")
        groups = [({"part": "only", "only": name}, name) for name in types]
        measures = [("signal", name) for name in ("tpr", "auprc", "elsewhere")]
    else:
        sizes = [(0.5, 0.1), (2.0, 0.1), (1.0, 0.02), (1.0, 0.3)]
        groups = [({"part": "sizes", "lfc": a, "share": b}, f"{a:g}, {b:g}") for a, b in sizes]
        measures = [("signal", name) for name in signal]
    for where, name in groups:
        methods = [method for method in TESTED if pick(rows, method=method, **where)]
        for i, method in enumerate(methods):
            cells = [text(pick(rows, method=method, kind=kind, measure=m, **where)) for kind, m in measures]
            seeds = str(count(pick(rows, method=method, **where)))
            lines.append([name if i == 0 else "", TESTED[method], seeds, *cells])
    first = {"main": "design", "only": "changed type", "sizes": "log2 fold change, share"}[part]
    heading = ["seconds of a split" if m == "seconds" else MEASURES[m][0] for _, m in measures]
    return markdown([first, "method", "seeds", *heading], lines)


def over_correction() -> str:
    """A row for each embedding: means over types that one batch alone holds; false reports with all types in all."""
    rows, lines = read(RESULTS / "over_correction.jsonl"), []
    whole = [row for row in rows if row["conditions"]["type"] == "whole"]
    alone = [row for row in rows if row["conditions"]["type"] != "whole"]
    for method in dict.fromkeys(row["method"] for row in alone):
        cells = [text(pick(alone, method=method, measure=m)) for m in ("purity", "alarm", "false", "total_kept")]
        lines.append([method, *cells, text(pick(whole, method=method, measure="false"))])
    heading = [MEASURES[m][0] for m in ("purity", "alarm", "false", "total_kept")]
    return markdown(["embedding", *heading, "reported, all types in all batches"], lines)


def abundance(kind: str) -> str:
    """`simulated`: by samples per arm, at tau 0.3; `donors`: by method, without an effect and with cells left out."""
    rows = read(RESULTS / "abundance.jsonl")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    if kind == "simulated":
        null = {"kind": "simulated", "tau": 0.3, "halved": False}
        groups = [({"n_each": n}, [str(n)]) for n in (3, 4, 8)]
        blocks = [(null, ("below_05", "some_call")), (null | {"halved": True}, ("found", "others_called"))]
        heading = ["samples per arm", "method", *(MEASURES[measure][0] for _, some in blocks for measure in some)]
    else:
        groups = [({}, [])]
        signals = [({"kind": "signal", "kept": kept}, ("found", "others_called", "auroc")) for kept in (0.5, 0.2)]
        blocks = [({"kind": "null"}, ("below_05", "some_call")), *signals]
        words = ["", *(f", {kept} kept" for kept in (0.5, 0.2))]
        heading = ["method"]
        heading += [MEASURES[m][0] + word for word, (_, some) in zip(words, blocks, strict=True) for m in some]
    lines = []
    for setting, name in groups:
        for method in methods:
            cells = [
                text(pick(rows, method=method, measure=measure, **setting, **where))
                for where, some in blocks
                for measure in some
            ]
            if any(cells):
                lines.append([*name, method, *cells])
    return markdown(heading, lines)


def generation(name: str) -> str:
    rows = [row for row in read(RESULTS / "generation.jsonl") if row["data_set"] == name and has(row, **GENERATION)]
    measures = [m for m in ("auc", "auc_sum", "mmd", "coverage", "spurious", "s_per_1000") if pick(rows, measure=m)]
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows if row["measure"] in measures):
        cells = [pick(rows, method=method, measure=measure) for measure in measures]
        lines.append(
            [
                method,
                str(count(cells[0])),
                *(text(c, error=m != "s_per_1000") for m, c in zip(measures, cells, strict=True)),
            ]
        )
    return markdown(["generator", "seeds", *(MEASURES[measure][0] for measure in measures)], lines)


def likelihood() -> str:
    rows = read(RESULTS / "generation.jsonl")
    rows = [row for row in rows if row["measure"] == "log_likelihood" and has(row, **GENERATION)]
    found = {method: pick(rows, method=method) for method in dict.fromkeys(row["method"] for row in rows)}
    lines = [[method, str(count(of)), text(of, error=True)] for method, of in found.items()]
    return markdown(["model", "seeds", "nats per image"], lines)


# -------------------------------------------------------------------------------------------------------- time, memory


def settings(part: str) -> dict[tuple, list[dict]]:
    """Rows of against_scvi.py by (processor or GPU, defaults, data set, threads): in the order of the file."""
    found: dict[tuple, list[dict]] = {}
    for row in read(RESULTS / "against_scvi.jsonl"):
        what, where = row["conditions"], row["machine"]
        if what["part"] == part and row["measure"] != "failed":
            key = (where["gpu"] or where["processor"], what.get("defaults"), row["data_set"], what["threads"])
            found.setdefault((*key, what.get("dropout_cost")), []).append(row)
    return found


def label(key: tuple) -> list[str]:
    processor, defaults, name, threads, _ = key
    return [name, processor + (f"; defaults: {defaults}" if defaults else ""), str(threads)]


def times(rows: list[dict], ours: str, measure: str, theirs: str = "scvi") -> str:
    """How many times faster: as the text of version 0.1.0 has it, or the ratio of medians."""
    copied = pick(rows, measure="times", of=measure, method=f"{theirs} / {ours}")
    if copied:
        return text(copied)
    first, second = (over(pick(rows, measure=measure, method=method)) for method in (ours, theirs))
    ratio = first / second if rows[0]["unit"] == "cells per s" else second / first
    return f"{ratio:.2f}" if ratio == ratio else ""


def epoch_time() -> str:
    lines = []
    for key, rows in settings("epoch").items():
        found = [pick(rows, measure="epoch_s", method=method) for method in ("sccvae", "sccvae-full", "scvi")]
        step = [pick(rows, measure="step_ms", method=method) for method in ("sccvae", "scvi")]
        faster = [times(rows, ours, "epoch_s") for ours in ("sccvae", "sccvae-full")]
        lines.append([*label(key), str(count(found[0])), *map(text, found), *faster, *map(text, step)])
    heading = ["data set", "processor", "threads", "runs", "sccvae (s)", "sccvae, float32 (s)", "scvi-tools (s)"]
    heading += ["times faster", "times faster, float32", "sccvae, step (ms)", "scvi-tools, step (ms)"]
    return markdown(heading, lines)


def step_floors() -> str:
    lines = []
    for key, rows in settings("epoch").items():
        for part, what in (("decoder", "decoder's six products"), ("all", "all products")):
            floor = pick(rows, measure=f"floor_{part}_ms")
            if floor:
                ratios = [
                    text(pick(rows, measure=f"step_to_floor_{part}", method=f"{m} / floor")) for m in ("sccvae", "scvi")
                ]
                if not ratios[0]:
                    steps = [over(pick(rows, measure="step_ms", method=m)) for m in ("sccvae", "scvi")]
                    ratios = [f"{step / over(floor):.2f}" if step == step else "" for step in steps]
                lines.append([*label(key), what, text(floor), *ratios])
    heading = ["data set", "processor", "threads", "products", "floor (ms)", "step / floor, sccvae"]
    return markdown([*heading, "step / floor, scvi-tools"], lines)


def inference_speed() -> str:
    lines = []
    for key, rows in settings("inference").items():
        cells = []
        for measure in ("latent", "expression"):
            of = [row for row in rows if row["measure"] == measure or row["conditions"].get("of") == measure]
            cells += [text(pick(of, measure=measure, method=method)) for method in ("sccvae", "scvi")]
            cells.append(times(of, "sccvae", measure))
        lines.append([*label(key), str(count(rows)), *cells])
    heading = ["data set", "processor", "threads", "runs", "latent, sccvae", "latent, scvi-tools", "times faster"]
    return markdown([*heading, "expression, sccvae", "expression, scvi-tools", "times faster"], lines)


def reached(rows: list[dict], peer: str) -> float:
    """Median of the seconds until sccvae has the best ELBO of a peer in the same repeat."""
    curves = {row["seeds"][0]: row["value"] for row in pick(rows, measure="curve", method="sccvae")}
    best = {row["seeds"][0]: row["value"] for row in pick(rows, measure="best_elbo", method=peer)}
    found = [next((s for s, e in curves[k] if e >= best[k]), float("inf")) for k in best if k in curves]
    return statistics.median(found) if found else float("nan")


def time_to_elbo() -> str:
    lines = []
    for key, rows in settings("quality").items():
        for peer in ("scvi", "scvi-tuned"):
            theirs = pick(rows, measure="best_s", method=peer)
            if not theirs:
                continue
            ours = pick(rows, measure="s_to_elbo", of=peer)
            seconds = text(ours) if ours else f"{reached(rows, peer):.4g}"
            copied = pick(rows, measure="times", method=f"{peer} / sccvae")
            faster = text(copied) if copied else f"{over(theirs) / reached(rows, peer):.1f}"
            elbo = [text(pick(rows, measure="best_elbo", method=method)) for method in ("sccvae", peer)]
            cap = theirs[0]["conditions"].get("cap")
            setting = ("defaults" if peer == "scvi" else "tuned") + (f", at most {cap} epochs" if cap else "")
            lines.append([*label(key), setting, str(count(theirs)), seconds, text(theirs), faster, *elbo])
    heading = ["data set", "processor", "threads", "scvi-tools' settings", "runs", "sccvae (s)", "scvi-tools (s)"]
    return markdown([*heading, "times faster", "ELBO, sccvae", "ELBO, scvi-tools"], lines)


def memory() -> str:
    lines = []
    for key, rows in settings("memory").items():
        for measure, what in (
            ("train_mb", "added by training"),
            ("total_mb", "in all, training"),
            ("expression_mb", ""),
        ):
            array = text(pick(rows, measure="array_mb", method="sccvae"))
            what = what or f"added by normalised expression (the array itself: {array})"
            cells = [pick(rows, measure=measure, method=method) for method in ("sccvae", "scvi")]
            lines.append([*label(key), what, *map(text, cells)])
    return markdown(["data set", "processor", "threads", "MiB", "sccvae", "scvi-tools"], lines)


def scaling() -> str:
    rows, lines = [r for r in read(RESULTS / "scaling.jsonl") if r["conditions"].get("part") != "large"], []
    for cells in sorted({row["conditions"]["cells"] for row in rows}):
        of_size, line = [row for row in rows if row["conditions"]["cells"] == cells], [f"{cells:,}"]
        for method in ("sccvae", "scvi"):
            epoch = pick(of_size, method=method, measure="epoch_s")
            copied = text(pick(of_size, method=method, measure="us_per_cell"))
            line.append(f"{1e6 * over(epoch) / (0.9 * cells):.0f}" if epoch else copied)
        line += [text(pick(of_size, method=method, measure="added_mb")) for method in ("sccvae", "scvi")]
        lines.append([*line, text(pick(of_size, measure="counts_mb"))[:8]])
    heading = ["cells", "sccvae (µs per cell and epoch)", "scvi-tools (µs)", "sccvae (MiB added)", "scvi-tools (MiB)"]
    return markdown([*heading, "counts (MiB)"], lines)


# ---------------------------------------------------------------------------------------------------------- experiments


def experiment(name: str) -> str:
    """Variants beside data sets and measures; whichever are fewer are the columns, or the variants if they are few.

    A row of the table holds numbers of the same comparison and the same seeds only: others do not compare.
    """
    rows = read(RESULTS / "experiments" / f"{name}.jsonl")
    rows = [row for row in rows if row["date"] is None or row["measure"] in MEASURES]
    variants = in_order(rows)
    what = list(dict.fromkeys((row["data_set"], row["measure"]) for row in rows))
    by = cells_of(rows)
    runs = list(dict.fromkeys(key[3:] for key in by))
    compared, lines = any(comparison for comparison, _ in runs), []
    if len(variants) <= max(len(what), NARROW):
        heading = ["data set", "measure", "seeds", *variants]
        for comparison, seeds in runs:
            for data_set, measure in what:
                cells = [text(by.get((v, data_set, measure, comparison, seeds), [])) for v in variants]
                if any(cells):
                    lines.append([comparison] * compared + [data_set, heading_of(measure), seeds, *cells])
    else:
        heading = ["variant", "seeds", *(f"{data_set}: {heading_of(measure)}" for data_set, measure in what)]
        for comparison, seeds in runs:
            for variant in variants:
                cells = [text(by.get((variant, *which, comparison, seeds), [])) for which in what]
                if any(cells):
                    lines.append([comparison] * compared + [variant, seeds, *cells])
    return markdown(["comparison"] * compared + heading, lines)


def cells_of(rows: list[dict]) -> dict[tuple, list[dict]]:
    """Rows by variant, data set, measure, comparison and seeds. Measured rows of one variant are one cell."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        what = (variant_of(row), row["data_set"], row["measure"], row["conditions"].get("comparison", ""))
        groups.setdefault((*what, seeds_of([row]) if row["date"] is None else None), []).append(row)
    for key, group in groups.items():
        if key[-1] is not None and len(group) > 1:
            raise ValueError(f"There are {len(group)} copied rows for one cell: {key}.")
    return {(*key[:-1], seeds_of(found)): found for key, found in ((k, newest(g)) for k, g in groups.items())}


def variant_of(row: dict) -> str:
    return row["conditions"].get("variant", row["method"])


def in_order(rows: list[dict]) -> list[str]:
    """The variants such that each follows those that stand before it in the file, for the same data set and measure."""
    lists: dict[tuple, dict] = {}
    for row in rows:
        what = (row["data_set"], row["measure"], row["conditions"].get("comparison"), seeds_of([row]))
        lists.setdefault(what, {})[variant_of(row)] = None
    sorter: graphlib.TopologicalSorter = graphlib.TopologicalSorter()
    for names in map(list, lists.values()):
        sorter.add(names[0])
        for first, second in pairwise(names):
            sorter.add(second, first)
    try:
        return list(sorter.static_order())
    except graphlib.CycleError:
        return list(dict.fromkeys(map(variant_of, rows)))


def heading_of(measure: str) -> str:
    return MEASURES.get(measure, (measure, None, False))[0]


TABLES: dict[str, Callable[[], str]] = {
    "comparison": comparison,
    "integration": integration,
    "other-datasets": other_datasets,
    "downsampled-queries": downsampled_queries,
    "pseudotime": pseudotime,
    "differential-expression": lambda: differential("repeats"),
    "differential-expression-first": lambda: differential("first"),
    "labels": labelled,
    "mapping-tasks": mapped,
    "mapping-queries": mapped_queries,
    "mapping-missing": missing_genes,
    "donors": lambda: donors("main"),
    "donors-only": lambda: donors("only"),
    "donors-sizes": lambda: donors("sizes"),
    "over-correction": over_correction,
    "abundance-simulated": lambda: abundance("simulated"),
    "abundance-donors": lambda: abundance("donors"),
    "generation-digits": lambda: generation("digits"),
    "generation-cortex": lambda: generation("cortex"),
    "generation-pbmc_3tech": lambda: generation("pbmc_3tech"),
    "likelihood-digits": likelihood,
    "time-to-elbo": time_to_elbo,
    "epoch-time": epoch_time,
    "step-floors": step_floors,
    "inference-speed": inference_speed,
    "memory": memory,
    "scaling": scaling,
}


# ------------------------------------------------------------------------------------------------- documents, figures


def documents() -> list[Path]:
    docs = ROOT / "docs"
    return [ROOT / "README.md", *sorted(docs.glob("*.md")), *sorted((docs / "experiments").glob("*.md"))]


def table(name: str) -> str:
    if name.startswith("experiments/"):
        return experiment(name.removeprefix("experiments/"))
    if name not in TABLES:
        raise ValueError(f"There is no table {name!r}; there are {', '.join(TABLES)}, and experiments/NAME.")
    return TABLES[name]()


def filled(document: str) -> str:
    """The document with every table made anew."""
    return MARK.sub(lambda found: f"{found['begin']}\n{table(found['name'])}\n{found['end']}", document)


def figures() -> None:
    """docs/scaling.png, if its rows were measured: those copied from the text lack most of its memory."""
    from rows import gather
    from scaling import draw, drawn

    if measured := drawn(gather(read(RESULTS / "scaling.jsonl"))):
        draw(measured, ROOT / "docs/scaling.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a table is another")
    options = parser.parse_args()
    stale = []
    for path in documents():
        before = path.read_text()
        after = filled(before)
        if after != before:
            stale.append(path)
            if not options.check:
                path.write_text(after)
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    print(f"{'Not as the rows have it' if options.check else 'Written'}: {names or 'nothing'}.")
    if options.check:
        sys.exit(bool(stale))
    figures()


if __name__ == "__main__":
    main()
