"""The command line: `sccvae integrate counts.h5ad -o integrated.h5ad --batch-key batch`."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that are something."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The arguments of `sccvae`."""
    top = argparse.ArgumentParser(
        prog="sccvae", description="Integrate and denoise single-cell counts with a variational autoencoder."
    )
    top.add_argument("--version", action="version", version=f"sccvae {version('sccvae')}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "integrate",
        help="train on the counts of an .h5ad file and write embedding and expression back",
        description="Train a model on raw counts and write an .h5ad with obsm['X_sccvae'] (embedding), "
        "layers['sccvae'] and layers['sccvae_corrected'] (denoised expression, in each cell's batch and averaged over "
        "all batches; NaN in genes that are not modelled), obs['sccvae_library'] and uns['sccvae'].",
        epilog="example: sccvae integrate counts.h5ad -o integrated.h5ad --batch-key batch",
        formatter_class=_Help,
    )
    command.add_argument("input", type=Path, help=".h5ad file with raw counts")
    command.add_argument(
        "-o", "--output", type=Path, required=True, default=argparse.SUPPRESS, help=".h5ad file to write"
    )
    command.add_argument("--batch-key", metavar="COLUMN", help="column of obs with the experiment of each cell")
    command.add_argument("--layer", help="layer with the counts, where they are not in X")
    command.add_argument(
        "--mask-var", metavar="COLUMN", help="boolean column of var: genes to model; 'all' for all of them; "
        "without it, var['highly_variable'] if there is one",
    )  # fmt: skip
    command.add_argument("--key-added", default="sccvae", metavar="KEY", help="prefix of what is written")
    command.add_argument(
        "--likelihood", choices=("zinb", "nb", "poisson"), default=argparse.SUPPRESS, help="distribution of the counts"
    )
    command.add_argument("--n-latent", type=int, default=argparse.SUPPRESS, help="dimensions of the embedding")
    command.add_argument("--max-epochs", type=int, default=argparse.SUPPRESS, help="passes over the training cells")
    command.add_argument("--no-expression", action="store_true", help="leave the two expression matrices out")
    command.add_argument("--save-model", type=Path, metavar="FOLDER", help="also save the trained model there")
    command.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    command.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    command.set_defaults(run=integrate)
    command = commands.add_parser(
        "report",
        help="write a page about a saved model for collaborators",
        description="Write one HTML page about a saved model and the cells it was trained on, or new ones: data, "
        "embedding, scores, training, diagnostics, parameters. It holds its figures and opens without a network.",
        epilog="example: sccvae report model/ counts.h5ad -o report.html --label-key cell_type",
        formatter_class=_Help,
    )
    command.add_argument("model", type=Path, help="folder with a saved model, as of integrate --save-model")
    command.add_argument("input", type=Path, help=".h5ad file with the raw counts")
    command.add_argument(
        "-o", "--output", type=Path, required=True, default=argparse.SUPPRESS, help=".html file to write"
    )
    command.add_argument("--batch-key", metavar="COLUMN", help="column of obs with batches, if not the model's own")
    command.add_argument("--label-key", metavar="COLUMN", help="column of obs with kinds of cells")
    command.add_argument("--title", help="heading of the page")
    command.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    command.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    command.set_defaults(run=report)
    command = commands.add_parser("demo", help="integrate a simulated set and show the result")
    command.add_argument("folder", type=Path, help="where integrated.h5ad and integration.png go")
    command.set_defaults(run=demo)
    return top


def integrate(arguments: argparse.Namespace) -> None:
    """Run `sccvae integrate`."""
    from sccvae import SCCVAE, tl
    from sccvae.names import check_key

    _check_paths(arguments)
    check_key("--key-added", arguments.key_added)
    adata = _read(arguments.input)
    _check_names(adata, arguments)
    mask = arguments.mask_var or ("highly_variable" if "highly_variable" in adata.var else None)
    given = {"n_latent": "n_latent", "likelihood": "gene_likelihood"}
    options = {name: getattr(arguments, flag) for flag, name in given.items() if hasattr(arguments, flag)}
    model = SCCVAE(
        adata,
        batch_key=arguments.batch_key,
        layer=arguments.layer,
        mask_var=None if mask == "all" else mask,
        seed=arguments.seed,
        device=arguments.device,
        **options,
    )
    tl.integration.check_spared(arguments.key_added, model)
    model.train(getattr(arguments, "max_epochs", None))
    tl.store(adata, model, key_added=arguments.key_added, expression=False if arguments.no_expression else None)
    _write(adata, arguments.output)
    if arguments.save_model:
        model.save(arguments.save_model, overwrite=True)
    print(f"{model}\nwritten: {arguments.output}")


def report(arguments: argparse.Namespace) -> None:
    """Run `sccvae report`."""
    from sccvae import SCCVAE

    _check_paths(arguments)
    model = SCCVAE.load(arguments.model, _read(arguments.input), device=arguments.device)
    options = {name: getattr(arguments, name) for name in ("batch_key", "label_key", "title", "seed")}
    model.report(arguments.output, **options)
    print(f"{model}\nwritten: {arguments.output}")


def demo(arguments: argparse.Namespace) -> None:
    """Run `sccvae demo`."""
    from sccvae.demo import run

    print(run(arguments.folder))


def _check_paths(arguments: argparse.Namespace) -> None:
    """Find out before the training, not after it."""
    if not arguments.input.is_file():
        raise FileNotFoundError(f"There is no file {arguments.input}.")
    if arguments.output.is_dir():
        raise IsADirectoryError(f"The output is a folder: {arguments.output}.")
    if getattr(arguments, "save_model", None) and arguments.save_model.exists() and not arguments.save_model.is_dir():
        raise FileExistsError(f"{arguments.save_model} is a file; the model is saved in a folder.")
    folder = arguments.output.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder of the output does not exist: {folder}.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"The folder of the output cannot be written to: {folder}.")


def _read(path: Path):
    """The AnnData of a file."""
    import anndata

    try:
        return anndata.read_h5ad(path)
    except Exception as error:  # whatever is wrong with the file
        raise ValueError(f"{path} cannot be read as an AnnData ({error}).") from error


def _check_names(adata, arguments: argparse.Namespace) -> None:
    """Find out before the training whether the output can hold the names of the input: one cell is written and read."""
    import anndata

    from sccvae.names import why_no_key

    if arguments.mask_var == "all" and "all" in adata.var:
        raise ValueError("--mask-var all means all genes, and var has a column 'all', too: rename the column.")
    places = ("obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers")
    suffix, some = arguments.output.suffix.lstrip("."), adata[:1].copy()
    suffix = suffix if suffix == "zarr" else "h5ad"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"names.{suffix}"
        try:
            getattr(some, f"write_{suffix}")(path)
            again = getattr(anndata, f"read_{suffix}")(path)
            lost = [place for place in places if set(getattr(again, place)) != set(getattr(some, place))]
            why = f"adata.{lost[0]} comes back with other names" if lost else None
        except Exception as error:  # noqa: BLE001  whatever the names do to the file
            why = str(error).partition("\n")[0]
    if why is not None:
        keys = [(place, key) for place in places for key in getattr(some, place) if isinstance(key, str)]
        found = [f"adata.{place}[{key!r}]: {why_no_key(key)}" for place, key in keys if why_no_key(key)]
        raise ValueError(
            f"{arguments.output} could not be written or read with the names in {arguments.input} "
            f"({'; '.join(found[:3]) or why}). Rename them first."
        )


def _write(adata, path: Path) -> None:
    """Write beside the target and rename, so that a killed run leaves no half file under the target's name."""
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.absolute().parent)
    os.close(handle)
    try:
        adata.write_h5ad(part, compression="gzip")
        os.umask(mask := os.umask(0))
        os.chmod(part, 0o666 & ~mask)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 1 for bad input (one sentence on stderr), 130 for Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        print("sccvae: interrupted", file=sys.stderr)
        return 130
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print("sccvae: error:", " ".join(str(text).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
