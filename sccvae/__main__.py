"""Command line: `sccvae integrate counts.h5ad -o integrated.h5ad --batch-key batch`."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FORMATS = (
    "raw counts: .h5ad, .zarr, or the .h5 file or folder of 10x; duplicate gene names get the suffixes -1, -2, ..."
)


class Terminated(BaseException):
    """SIGTERM from the system or a batch queue; unlike Ctrl-C, training does not catch this exception."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that shows only defaults other than None and False."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments of `sccvae`."""
    from sccvae import __version__

    top = argparse.ArgumentParser(
        prog="sccvae", description="Integrate and denoise single-cell counts with a variational autoencoder."
    )
    top.add_argument("--version", action="version", version=f"sccvae {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_integrate(commands)
    _add_map(commands)
    _add_report(commands)
    _add_simulate(commands)
    _add_pack(commands)
    command = commands.add_parser("demo", help="integrate a simulated data set and show the result")
    command.add_argument("folder", help="folder for integrated.h5ad and integration.png")
    command.set_defaults(run=demo)
    return top


def _add_integrate(commands) -> None:
    """Add the arguments of `sccvae integrate`; defaults are those of `SCCVAE`."""
    command = commands.add_parser(
        "integrate",
        help="train on the counts of an .h5ad file and write embedding and expression back",
        description="Train a model on raw counts and write an .h5ad or .zarr with obsm['X_sccvae'] (embedding), "
        "layers['sccvae'] and layers['sccvae_corrected'] (denoised expression, in each cell's batch and averaged over "
        "all batches; NaN in genes that are not modelled), obs['sccvae_library'] and uns['sccvae'].",
        epilog="example: sccvae integrate counts.h5ad -o integrated.h5ad --batch-key batch",
        formatter_class=_Help,
    )
    command.add_argument(
        "input", type=Path, nargs="+", help=f"{FORMATS}. Several files are one set; a pack is read, too. Several "
        "files, a pack, and a file whose matrices take more than half of the free memory are read and written in "
        "blocks: the output then has counts, obs, var and the results, without the other parts of the input.",
    )  # fmt: skip
    _add_output(command, ".h5ad file or .zarr folder to write")
    command.add_argument("--batch-key", metavar="COLUMN", help="column of obs with the experiment of each cell")
    command.add_argument("--labels-key", metavar="COLUMN", help="column of obs with labels of some or all cells")
    command.add_argument("--unlabeled", metavar="VALUE", help="value of --labels-key that means no label")
    command.add_argument("--condition-key", metavar="COLUMN", help="column of obs with the condition that you study")
    _add_reading(command)
    _add_storage(command)
    command.add_argument(
        "--mask-var", metavar="COLUMN", help="boolean column of var: genes to model; 'all' for all of them; "
        "without it, var['highly_variable'] if there is one",
    )  # fmt: skip
    command.add_argument("--key-added", default="sccvae", metavar="KEY", help="prefix of the keys of results")
    command.add_argument(
        "--likelihood", choices=("zinb", "nb", "poisson"), default=argparse.SUPPRESS, help="distribution of the counts"
    )
    command.add_argument("--n-latent", type=int, default=argparse.SUPPRESS, help="dimensions of the embedding")
    command.add_argument("--max-epochs", type=int, default=argparse.SUPPRESS, help="passes over the training cells")
    command.add_argument("--no-expression", action="store_true", help="leave the two expression matrices out")
    command.add_argument("--save-model", metavar="FOLDER", help="also save the trained model there")
    _add_checkpoints(command)
    _add_seed_and_device(command)
    command.set_defaults(run=integrate)


def _add_map(commands) -> None:
    """Add the arguments of `sccvae map`; defaults are those of `tl.map_query`."""
    command = commands.add_parser(
        "map",
        help="map new cells onto a saved model, and label them",
        description="Map the cells of a file onto a saved model and write an .h5ad or .zarr with obsm['X_sccvae'] "
        "(embedding) and uns['sccvae']; if the model has labels also with their columns of obs: sccvae_label, "
        "_probability, _novelty, _accepted and _reason.",
        epilog="example: sccvae map model/ query.h5ad -o mapped.h5ad",
        formatter_class=_Help,
    )
    command.add_argument("model", type=Path, help="folder with a saved model, as of integrate --save-model")
    command.add_argument(
        "input", type=Path, help=f"{FORMATS}. A file whose matrices take more than half of the free memory is read and "
        "written in blocks: the output then has counts, obs, var and the results alone.",
    )  # fmt: skip
    _add_output(command, ".h5ad file or .zarr folder to write, not the input")
    command.add_argument("--batch-key", metavar="COLUMN", help="column of obs with batches, if not the model's own")
    command.add_argument("--key-added", default="sccvae", metavar="KEY", help="prefix of the keys of results")
    command.add_argument("--gene-key", metavar="COLUMN", help="column of var with identifiers of genes")
    command.add_argument(
        "--least-genes", type=float, default=argparse.SUPPRESS, help="smallest fraction of the model's genes found"
    )
    command.add_argument("--no-train", action="store_true", help="do not adapt the offsets of new batches")
    _add_seed_and_device(command)
    command.set_defaults(run=map_query)


def _add_report(commands) -> None:
    """Add the arguments of `sccvae report`."""
    command = commands.add_parser(
        "report",
        help="write a page about a saved model for collaborators",
        description="Write one HTML page about a saved model and the cells it was trained on, or new ones: data, "
        "embedding, scores, training, diagnostics, parameters. The page is self-contained and needs no network.",
        epilog="example: sccvae report model/ counts.h5ad -o report.html --label-key cell_type",
        formatter_class=_Help,
    )
    command.add_argument("model", type=Path, help="folder with a saved model, as of integrate --save-model")
    command.add_argument("input", type=Path, help=FORMATS)
    _add_output(command, ".html file to write")
    command.add_argument("--batch-key", metavar="COLUMN", help="column of obs with batches, if not the model's own")
    command.add_argument("--label-key", metavar="COLUMN", help="column of obs with cell types")
    command.add_argument("--title", help="heading of the page")
    _add_seed_and_device(command)
    command.set_defaults(run=report)


def _add_pack(commands) -> None:
    """Add the arguments of `sccvae pack`."""
    command = commands.add_parser(
        "pack",
        help="write the counts of files into a folder that integrate reads at once",
        description="Check the counts of one or several files and write them in compact form, about three bytes for "
        "each nonzero count, into a folder. sccvae integrate reads it in place of the files.",
        epilog="example: sccvae pack a.h5ad b.h5ad -o atlas.pack",
        formatter_class=_Help,
    )
    command.add_argument("input", type=Path, nargs="+", help=FORMATS)
    _add_output(command, "folder to write; a new name")
    _add_reading(command)
    command.set_defaults(run=pack)


def _add_simulate(commands) -> None:
    """Add the arguments of `sccvae simulate`; defaults are those of `sccvae.simulate.simulate`."""
    command = commands.add_parser(
        "simulate",
        help="write simulated cells of any number",
        description="Write cells simulated from the model, with their true latent variables and parameters, block by "
        "block: memory does not depend on the number of cells.",
        epilog="example: sccvae simulate -n 100000 -o cells.h5ad",
        formatter_class=_Help,
    )
    command.add_argument("-n", "--n-cells", type=int, required=True, default=argparse.SUPPRESS, help="number of cells")
    _add_output(command, ".h5ad file or .zarr folder to write")
    command.add_argument("--n-genes", type=int, default=argparse.SUPPRESS, help="number of genes")
    command.add_argument("--n-batches", type=int, default=argparse.SUPPRESS, help="number of batches")
    command.add_argument("--mean-library", type=float, default=argparse.SUPPRESS, help="mean molecules per cell")
    command.add_argument("--n-files", type=int, help="write so many files, with consecutive cells")
    command.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    command.set_defaults(run=simulate)


def _add_output(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("-o", "--output", required=True, default=argparse.SUPPRESS, help=what)


def _add_seed_and_device(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    command.add_argument("--device", default="auto", help="cpu, cuda, or auto")


def _add_reading(command: argparse.ArgumentParser) -> None:
    """Add the options of what is read from files."""
    command.add_argument("--layer", help="layer with the counts, where they are not in X")
    command.add_argument(
        "--join", choices=("inner", "exact"), default="inner", help="genes of several files: those that all have "
        "(inner), or an error where they differ (exact)",
    )  # fmt: skip
    command.add_argument("--round-counts", action="store_true", help="round expected counts, as of RSEM or Salmon")


def _add_storage(command: argparse.ArgumentParser) -> None:
    """Add the options of data larger than memory."""
    command.add_argument(
        "--memory-budget", type=float, metavar="GIB", help="GiB of memory for the counts, which beyond it go into a "
        "file; without it, half of the free memory",
    )  # fmt: skip
    command.add_argument("--cache-dir", metavar="FOLDER", help="keep the counts there as a pack, for the next run")


def _add_checkpoints(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint", metavar="FOLDER", help="write the state of the training there; if the folder holds this run, "
        "killed before its end, go on with it",
    )  # fmt: skip
    command.add_argument(
        "--checkpoint-every", type=int, default=1000, metavar="STEPS", help="steps from one checkpoint to the next"
    )


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


def demo(arguments: argparse.Namespace) -> None:
    """Run `sccvae demo`."""
    from sccvae.demo import run

    print(run(arguments.folder))


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
    arguments = parser().parse_args(argv)
    error_of = f"sccvae: error (process {rank}):" if (rank := _rank()) else "sccvae: error:"
    if rank:  # warnings are those of process 0
        logging.disable(logging.WARNING)
        warnings.showwarning = lambda *_, **__: None
    try:
        with _terminable():
            arguments.run(arguments)
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
