"""The arguments of the command line: `parser` makes a parser whose `command` says what was asked for."""

import argparse
from pathlib import Path

FORMATS = (
    "raw counts: .h5ad, .zarr, or the .h5 file or folder of 10x; duplicate gene names get the suffixes -1, -2, ..."
)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help formatter that shows only defaults other than None and False."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parser(version: str) -> argparse.ArgumentParser:
    """Return the parser of the arguments of `sccvae`."""
    top = argparse.ArgumentParser(
        prog="sccvae", description="Integrate and denoise single-cell counts with a variational autoencoder."
    )
    top.add_argument("--version", action="version", version=f"sccvae {version}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_integrate(commands)
    _add_map(commands)
    _add_report(commands)
    _add_simulate(commands)
    _add_generate(commands)
    _add_pack(commands)
    command = commands.add_parser("demo", help="integrate a simulated data set and show the result")
    command.add_argument("folder", help="folder for integrated.h5ad and integration.png")
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
    _add_model(command)
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
    _add_model(command)
    command.add_argument("input", type=Path, help=FORMATS)
    _add_output(command, ".html file to write")
    command.add_argument("--batch-key", metavar="COLUMN", help="column of obs with batches, if not the model's own")
    command.add_argument("--label-key", metavar="COLUMN", help="column of obs with cell types")
    command.add_argument("--title", help="heading of the page")
    _add_seed_and_device(command)


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


def _add_generate(commands) -> None:
    """Add the arguments of `sccvae generate`; defaults are those of `SCCVAE.generate`."""
    command = commands.add_parser(
        "generate",
        help="write new cells from a saved model",
        description="Write cells generated by a saved model, block by block: memory does not depend on their number.",
        epilog="example: sccvae generate model/ -n 100000 -o cells.h5ad --batch batch_1",
        formatter_class=_Help,
    )
    _add_model(command)
    command.add_argument("-n", "--n-cells", type=int, default=argparse.SUPPRESS, help="number of cells")
    _add_output(command, ".h5ad file or .zarr folder to write")
    command.add_argument("--prior", default=argparse.SUPPRESS, help="normal or aggregate: where z is drawn from")
    command.add_argument("--batch", nargs="+", default=argparse.SUPPRESS, metavar="NAME", help="batch or batches")
    command.add_argument("--label", default=argparse.SUPPRESS, help="label of all new cells, of a model with labels")
    command.add_argument("--like", type=Path, metavar="FILE", help="cells to resemble: " + FORMATS)
    command.add_argument(
        "--library-size", default=argparse.SUPPRESS, metavar="SIZE", help="depth: a number, or the name of a batch"
    )
    command.add_argument("--store-truth", action="store_true", help="also write the expected counts")
    _add_seed_and_device(command)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, help="folder with a saved model, as of integrate --save-model")


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
