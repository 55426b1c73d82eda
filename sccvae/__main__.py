"""Command line: `sccvae integrate counts.h5ad -o integrated.h5ad --batch-key batch`."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


class Terminated(BaseException):
    """SIGTERM from the system or a batch queue; unlike Ctrl-C, training does not catch this exception."""


def integrate(arguments: argparse.Namespace) -> None:
    """Run `sccvae integrate`."""
    from sccvae import tl
    from sccvae.data.sources import open_source
    from sccvae.validation.names import check_key

    _check_paths(arguments.input)
    check_key("--key-added", arguments.key_added)
    if arguments.unlabeled is not None and arguments.labels_key is None:
        raise ValueError("--unlabeled is a value of the column --labels-key, which is missing; expected both.")
    _check_outputs(arguments)
    if not _in_blocks(arguments.input):
        adata = _read(arguments.input[0])
        if arguments.mask_var == "all" and "all" in adata.var:
            raise ValueError("--mask-var all means all genes, but var has a column 'all', too: rename the column.")
        tl.stored.check_names(adata, arguments.input[0], arguments.output)
        _integrate(adata, arguments)
        return
    with open_source(arguments.input, join=arguments.join, budget=_budget(arguments)) as source:
        tl.stored.check_place(source, arguments.output)
        _integrate(source, arguments)


def _integrate(adata, arguments: argparse.Namespace) -> None:
    """Train a model on an AnnData, or on files that are open, and write its results."""
    from sccvae import SCCVAE, tl
    from sccvae.data.sources import Source
    from sccvae.io import anndata_files

    mask = arguments.mask_var or tl.stored.default_mask(Source.of(adata))
    given = {"n_latent": "n_latent", "likelihood": "gene_likelihood"}
    options = {name: getattr(arguments, flag) for flag, name in given.items() if hasattr(arguments, flag)}
    model = SCCVAE(
        adata,
        join=arguments.join,
        memory_budget=_budget(arguments),
        cache_dir=arguments.cache_dir,
        batch_key=arguments.batch_key,
        labels_key=arguments.labels_key,
        unlabeled=arguments.unlabeled,
        condition_key=arguments.condition_key,
        layer=arguments.layer,
        mask_var=None if mask == "all" else mask,
        round_counts=arguments.round_counts,
        seed=arguments.seed,
        device=arguments.device,
        **options,
    )
    tl.integration.check_spared(arguments.key_added, model)
    state = {"checkpoint": arguments.checkpoint, "checkpoint_every": arguments.checkpoint_every, "resume": True}
    model.train(getattr(arguments, "max_epochs", None), **state)
    first = _rank() == 0  # of torchrun's processes
    if arguments.save_model and first:  # before the rest, because training took most of the time
        model.save(arguments.save_model, overwrite=True)
    results = {"key_added": arguments.key_added, "expression": False if arguments.no_expression else None}
    if isinstance(adata, Source):
        tl.stored.write(adata, model, arguments.output, **results, own=True)
    elif first:
        tl.store(adata, model, **results)
        anndata_files.write(adata, arguments.output)
    if first:
        print(f"{model}\nwritten: {arguments.output}")


def map_query(arguments: argparse.Namespace) -> None:
    """Run `sccvae map`."""
    from sccvae import SCCVAE, tl
    from sccvae.io import anndata_files, files
    from sccvae.validation.names import check_key

    _check_paths([arguments.model, arguments.input])
    check_key("--key-added", arguments.key_added)
    files.check_apart(anndata_files.checked(arguments.output), [arguments.input, arguments.model])
    model = SCCVAE.load(arguments.model, device=arguments.device)
    names = ("batch_key", "gene_key", "least_genes", "key_added", "seed")
    options = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    options["train"] = not arguments.no_train
    if _in_blocks([arguments.input]):
        tl.map_query(arguments.input, model, out=arguments.output, **options)
        print(f"{model}\nwritten: {arguments.output}")
        return
    query = _read(arguments.input)
    tl.stored.check_names(query, arguments.input, arguments.output)
    tl.map_query(query, model, **options)
    anndata_files.write(query, arguments.output)
    print(f"{model}\nmapped: {query.n_obs:,} cells\nwritten: {arguments.output}")


def _budget(arguments: argparse.Namespace) -> float | None:
    """Return the bytes of memory for the counts; None where the user gives no number."""
    return None if arguments.memory_budget is None else arguments.memory_budget * 2**30


def pack(arguments: argparse.Namespace) -> None:
    """Run `sccvae pack`."""
    from sccvae import pack

    options = {name: getattr(arguments, name) for name in ("layer", "join", "round_counts")}
    print(f"written: {pack(arguments.input, arguments.output, **options)}")


def _in_blocks(paths: Sequence[Path]) -> bool:
    """Return whether the cells are read and written in blocks, not as one AnnData in memory."""
    from sccvae.data.packs import free_memory, is_pack
    from sccvae.io.opening import size_of

    return len(paths) > 1 or is_pack(paths[0]) or size_of(paths[0]) > free_memory() / 2


def report(arguments: argparse.Namespace) -> None:
    """Run `sccvae report`."""
    from sccvae import SCCVAE
    from sccvae.io import files

    _check_paths([arguments.input])
    files.check_apart(files.checked(arguments.output), [arguments.input, arguments.model])
    model = SCCVAE.load(arguments.model, _read(arguments.input), device=arguments.device)
    options = {name: getattr(arguments, name) for name in ("batch_key", "label_key", "title", "seed")}
    model.report(arguments.output, **options)
    print(f"{model}\nwritten: {arguments.output}")


def simulate(arguments: argparse.Namespace) -> None:
    """Run `sccvae simulate`."""
    from sccvae.simulate import simulate as simulated

    names = ("n_cells", "n_genes", "n_batches", "mean_library", "n_files", "seed")
    written = simulated(
        out=arguments.output, **{name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    )
    print("written:", *(written if isinstance(written, list) else [written]))


def generate(arguments: argparse.Namespace) -> None:
    """Run `sccvae generate`."""
    from sccvae import SCCVAE
    from sccvae.io import anndata_files, files

    like = [] if arguments.like is None else [arguments.like]
    _check_paths(like)
    files.check_apart(anndata_files.checked(arguments.output), [arguments.model, *like])
    model = SCCVAE.load(arguments.model, device=arguments.device)
    names = ("n_cells", "prior", "batch", "label", "library_size", "store_truth", "seed")
    options = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    with suppress(KeyError, ValueError):
        options["library_size"] = float(options["library_size"])
    if like:
        options["like"] = _read(arguments.like)
    model.generate(**options, out=arguments.output)
    print(f"{model}\nwritten: {arguments.output}")


def demo(arguments: argparse.Namespace) -> None:
    """Run `sccvae demo`."""
    from sccvae.demo import run

    print(run(arguments.folder))


COMMANDS = {
    "integrate": integrate,
    "map": map_query,
    "report": report,
    "simulate": simulate,
    "generate": generate,
    "pack": pack,
    "demo": demo,
}


def _rank() -> int:
    """Return the number of this process among those of torchrun; 0 for a single one."""
    rank, size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return int(rank) if rank.isdigit() and size.isdigit() and int(size) > 1 else 0


def _check_paths(paths: Sequence[Path]) -> None:
    """Check, before training, that the input exists."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"There is no file {path}.")


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Check, before training, that output, checkpoints and model can be written."""
    from sccvae.io import anndata_files, checkpoints, storage

    target = anndata_files.checked(arguments.output)
    if arguments.checkpoint is not None:
        checkpoints.checked(arguments.checkpoint)
    if arguments.save_model is None:
        return
    folder = storage.check_place(arguments.save_model, overwrite=True)
    if folder == target or target in folder.parents:
        raise ValueError(
            f"--save-model is {arguments.save_model}, inside the output or equal to it; expected another folder."
        )


def _read(path: Path):
    """Read the AnnData of a file or folder."""
    from sccvae.io.reading import read

    return read(path)


@contextmanager
def _terminable() -> Iterator[None]:
    """Convert SIGTERM inside the block to an exception, so that no incomplete files remain."""

    def end(*_):
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread, the only one that receives signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    The exit status: 0; 1 for bad input, a full disk or too little memory (one sentence on stderr); 130 for Ctrl-C; 143
    for SIGTERM.
    """
    from sccvae import __version__
    from sccvae.command_line import parser

    arguments = parser(__version__).parse_args(argv)
    error_of = f"sccvae: error (process {rank}):" if (rank := _rank()) else "sccvae: error:"
    if rank:  # warnings are those of process 0
        logging.disable(logging.WARNING)
        warnings.showwarning = lambda *_, **__: None
    try:
        with _terminable():
            COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        print("sccvae: interrupted", file=sys.stderr)
        return 130
    except Terminated:
        print("sccvae: terminated", file=sys.stderr)
        return 143
    except MemoryError as error:
        print(error_of, "not enough memory:", " ".join(str(error).split()) or "none is left", file=sys.stderr)
        return 1
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(error_of, " ".join(str(text).split()), file=sys.stderr)
        return 1
    return 0


def program() -> None:
    """Run the command line and end the process."""
    status = main()
    if status:  # without cleanup, because HDF5 crashes at Python's exit after a failed write
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(0)


if __name__ == "__main__":
    program()
