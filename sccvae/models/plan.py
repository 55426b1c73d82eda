"""Runs of training: their plan, from the arguments of `train`, and their checkpoints."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast, get_args, get_origin, get_type_hints

import numpy as np
import torch

from sccvae.data.counts import Counts
from sccvae.data.origin import fingerprint
from sccvae.data.packs import Storage, checked_storage
from sccvae.data.sources import Given
from sccvae.io import checkpoints, storage
from sccvae.models.description import understood
from sccvae.models.signatures import Understanding
from sccvae.modules.vae import VAE
from sccvae.training.checkpoint import BEST, Checkpoints, best_weights
from sccvae.training.finite import TrainingError
from sccvae.training.loop import Plan, Progress, fit
from sccvae.validation.arguments import FLOAT32, MOST, check_choice, flag, positive, real, whole

logger = logging.getLogger("sccvae")

_BY_TYPE: dict[type, Callable[[str, Any], Any]] = {int: whole, float: real, bool: flag}  # of a field -> its check


def default_epochs(n_cells: int) -> int:
    """Default number of epochs: 35, or the number that makes 1,200 to 5,000 steps of 128 cells; at least 5."""
    n_steps = min(max(35 * n_cells / 128, 1200), 5000)
    return max(5, round(n_steps * 128 / n_cells))


def default_batch_size(n_cells: int, device: torch.device, n_processes: int = 1) -> int:
    """Default cells per step and process: 128, and on a GPU up to 1,024 if five epochs still have 4,500 steps."""
    if device.type != "cuda":
        return 128
    return max((size for size in (256, 512, 1024) if 5 * n_cells >= 4500 * size * n_processes), default=128)


def count_of_processes() -> int:
    """Return the number of processes that train together, by torchrun or a group of `torch.distributed`."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    asked = os.environ.get("WORLD_SIZE", "")
    return max(int(asked), 1) if asked.isdecimal() else 1


def checked_plan(**choices: Any) -> Plan:
    """Make a `Plan`; each field is checked by its type, and numbers also by their range.

    Raises
    ------
    TypeError, ValueError
        A value is of another type, not among the choices, or out of range; the message names the field.
    """
    read = {}
    for name, hint in get_type_hints(Plan).items():
        if get_origin(hint) is Literal:
            check_choice(name, choices[name], get_args(hint))
        else:
            read[name] = _BY_TYPE[hint](name, choices[name])
    for name in ("max_epochs", "n_draws"):
        whole(name, read[name], most=MOST)
    for name, value in read.items():
        if name not in ("early_stopping", "kl_warmup", "weight_decay") and not value > 0:
            raise ValueError(f"{name} is {value}; expected more than 0.")
    if read["learning_rate"] > FLOAT32:
        raise ValueError(f"learning_rate is {read['learning_rate']}; expected a finite number above 0.")
    if not 0 <= read["kl_warmup"] <= 1:
        raise ValueError(f"kl_warmup is {read['kl_warmup']}; expected a fraction of the run in [0, 1].")
    if not 0 <= read["weight_decay"] <= FLOAT32:
        raise ValueError(f"weight_decay is {read['weight_decay']}; expected a finite number, 0 or more.")
    return Plan(**choices | read)


# --------------------------------------------------------------------------------------------------------- checkpoints

_SETTINGS = ("data", "schema", "architecture", "options", "seed", "plan", "train_size", "first_epoch")


@dataclass
class Run:
    """A run of training, which may go on from a checkpoint."""

    plan: Plan
    train_size: float
    progress: Progress
    checkpoints: Checkpoints | None = None
    ended: bool = False  # in an earlier process

    @classmethod
    def begun(
        cls, model: Any, plan: Plan, train_size: float, path: str | os.PathLike | None, every: int, resume: bool
    ) -> Run:
        """Begin a run of a model. With `resume`, set the model to a checkpoint of the same run, if there is one.

        Raises
        ------
        FileExistsError
            The folder holds a run that has not ended.
        ValueError
            With `resume`, the folder holds a run of other data or settings that has not ended.
        """
        first_epoch = model._rows[-1]["epoch"] + 1 if model._rows else 1
        run = cls(plan, train_size, Progress(first_epoch=first_epoch, best_epoch=model._best_epoch))
        every, resume = positive("checkpoint_every", every), flag("resume", resume)
        if path is None:
            return run
        folder = checkpoints.checked(path)
        description = run.description(model)
        if checkpoints.holds(folder):
            with checkpoints.opened(folder, model.kind) as (saved, found):
                where, ended = _where(found), found["numbers"]["finished"]
                changed = _difference({name: found[name] for name in _SETTINGS}, description)
                tensors = saved.tensors(finite=False)
            if resume and changed is None:
                return cls.going_on(model, folder, found, tensors)
            if not ended:
                raise _refusal(folder, model.kind, where, changed if resume else None)
        run.checkpoints = Checkpoints(every, run.writer(model, folder, description, every))
        return run

    @classmethod
    def going_on(cls, model: Any, folder: Path, found: dict[str, Any], tensors: dict[str, Any]) -> Run:
        """Set a model to a checkpoint of the same data and settings; return the run that goes on from it."""
        numbers, rows, first = found["numbers"], list(map(dict, found["history"])), found["first_epoch"]
        choices = {k: float(v) if get_type_hints(Plan)[k] is float else v for k, v in found["plan"].items()}
        progress = Progress(first_epoch=first, best_epoch=found["best_epoch"])
        run = cls(checked_plan(**choices), found["train_size"], progress, ended=numbers["finished"])
        model._rows, progress.rows = [r for r in rows if r["epoch"] < first], [r for r in rows if r["epoch"] >= first]
        model._take(best_weights(tensors))
        if not run.ended:
            write = run.writer(model, folder, run.description(model), found["every"])
            run.checkpoints = Checkpoints(found["every"], write, numbers, tensors)
        return run

    def description(self, model: Any) -> dict[str, Any]:
        """Describe data and settings of a run, as JSON has them."""
        plan = {k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in asdict(self.plan).items()}
        data = fingerprint(model._counts, model._cell_names)
        own = {"data": data, "plan": plan, "train_size": self.train_size, "first_epoch": self.progress.first_epoch}
        return model._description() | own

    def facts(self, model: Any) -> dict[str, Any]:
        """Describe what processes that train together must have in common."""
        own = self.description(model)
        start = self.checkpoints.numbers if self.checkpoints is not None else None
        state = {"step of the checkpoint": None if start is None else start["step"]}
        return {"versions": storage.versions(), **{name: own[name] for name in _SETTINGS}, **state}

    def writer(self, model: Any, folder: Path, description: dict[str, Any], every: int) -> Callable:
        """Return the function that writes a checkpoint: (progress, numbers, arrays)."""
        before = list(model._rows)

        def write(progress: Progress, numbers: dict[str, Any], tensors: dict[str, Any]) -> None:
            now = {"history": before + progress.rows, "best_epoch": progress.best_epoch, "numbers": numbers}
            checkpoints.write(folder, tensors, description | now | {"every": every})

        return write


def resumed(kind: Any, path: str | os.PathLike, source: Any, device: Any, cache_dir: Path | None) -> tuple[Any, Run]:
    """Make a model of the class `kind` from a checkpoint and its data; return it and the run that goes on.

    Raises
    ------
    FileNotFoundError, sccvae.ModelFileError
        The folder has no checkpoint, or none that can be read.
    ValueError
        The data are not those of the run.
    """
    with checkpoints.opened(path, kind.kind) as (saved, found):
        known = understood(found, kind.kind)
        best = {name.removeprefix(BEST): a for name, a in saved.arrays.items() if name.startswith(BEST)}
        storage.check_arrays(best, kind._expected(known, best))
        tensors = saved.tensors(finite=False)
    model = kind.__new__(kind)
    model._set(*known[:2], known.profiles, known.frequencies, known.seed, device, known.options)
    # In memory or in a file as before: the order of the cells depends on it.
    place = Storage(0.0 if found["data"]["place of the counts"] == "file" else math.inf, cache_dir)
    model._remember(source, *known.schema.read_given(source, place))
    if changed := _difference({"data": found["data"]}, {"data": fingerprint(model._counts, model._cell_names)}):
        raise ValueError(f"The data are not those of the run in {path}: {changed}. Pass the data that it began with.")
    return model, Run.going_on(model, Path(path), found, tensors)


def processes_beside(device: torch.device) -> Any:
    """Return the processes that work together, of torchrun or of a group of `torch.distributed`; None for one."""
    if "WORLD_SIZE" not in os.environ and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    from sccvae.training.processes import processes_of

    return processes_of(device)


def _where(found: dict[str, Any]) -> str:
    """Say how far a run has come."""
    numbers, last = found["numbers"], found["first_epoch"] + found["plan"]["max_epochs"] - 1
    return "that has ended" if numbers["finished"] else f"that has not ended (epoch {numbers['epoch']} of {last})"


def _refusal(folder: Path, kind: str, where: str, changed: str | None) -> Exception:
    if changed is not None:
        return ValueError(
            f"{folder} holds a run {where} with other data or settings: {changed}. Pass those, or another folder."
        )
    return FileExistsError(
        f"{folder} holds a run {where}: go on with {kind}.resume({str(folder)!r}, adata), delete the folder, or choose "
        "another."
    )


def _difference(before: Any, now: Any, name: str = "") -> str | None:
    """Name the first difference between what a checkpoint has and what is asked for; None if there is none."""
    if isinstance(before, dict):
        for key, value in before.items():
            if found := _difference(value, now.get(key), f"{name}.{key}" if name else key):
                return found
        return None
    if _as_json(before) == _as_json(now):
        return None
    if name.startswith("data."):
        more = "" if isinstance(before, str) else f" ({before:,} there, {now:,} here)"
        return f"other {name.removeprefix('data.')}{more}"
    shown = [text if len(text := repr(value)) <= 60 else f"{text[:60]}..." for value in (before, now)]
    return f"{name} is {shown[0]} there, {shown[1]} here"


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_json(each) for key, each in value.items()}
    return tuple(map(_as_json, value)) if isinstance(value, (list, tuple)) else value


# --------------------------------------------------------------------------------------------------------------- models


class TrainingModel(metaclass=Understanding):
    """Base class of all models: training, and its continuation from a checkpoint."""

    kind: ClassVar[str]  # name of the class in a saved model
    _vae: VAE
    _counts: Counts | None
    _rows: list[dict[str, Any]]
    _best_epoch: int
    _loading: Any
    _seed: int
    _split: Callable[[float], tuple[np.ndarray, np.ndarray]]
    _after_training: Callable[[], None]

    def _train(self, plan: Plan, train_size: float, progress_bar: bool, *checkpoint: Any) -> None:
        """Train, or continue training, by the plan; `checkpoint` are folder, steps between checkpoints, `resume`."""
        self._split(train_size)  # checks
        progress_bar = flag("progress_bar", progress_bar)
        self._run(Run.begun(self, plan, train_size, *checkpoint), progress_bar)

    def _run(self, run: Run, progress_bar: bool) -> None:
        """Train from the beginning of a run or from its checkpoint."""
        plan, progress, (cells, held_out) = run.plan, run.progress, self._split(run.train_size)
        if len(held_out) == 0 and plan.early_stopping:
            logger.warning("No cell is held out: early stopping is off, and the last epoch is kept.")
        options: dict[str, Any] = {"seed": self._seed, "progress_bar": progress_bar, "checkpoints": run.checkpoints}
        processes = None if run.ended else processes_beside(self._vae.device)
        try:
            if run.ended:
                pass
            elif processes is None:
                fit(self._vae, cast(Counts, self._counts), cells, held_out, plan, progress, **options)
            else:
                options |= {"progress_bar": progress_bar and processes.rank == 0, "processes": processes}
                with processes.together(TrainingError):
                    processes.check_same(run.facts(self), _difference)
                    fit(self._vae, cast(Counts, self._counts), cells, held_out, plan, progress, **options)
        finally:
            self._rows += progress.rows
            self._best_epoch, self._loading = progress.best_epoch, progress.loading
            self._after_training()
        if progress.stopped == "interrupted" and (processes is None or processes.rank == 0):
            logger.warning("Interrupted: the model holds the weights of epoch %d.", self._best_epoch)

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike,
        source: Given,
        *,
        cache_dir: str | os.PathLike | None = None,
        progress_bar: bool = True,
        device: str | torch.device = "auto",
    ) -> Self:
        """Go on with a run that ended before its time, from its last checkpoint; return the trained model.

        Weights, history (without seconds) and outputs are those of a run that was never interrupted, to the bit. A run
        that has ended is returned at once.

        Parameters
        ----------
        path
            Folder that ``train(checkpoint=...)`` wrote to. Further checkpoints are written there.
        source
            Data that the run began with, as `adata` of the model.
        cache_dir
            Folder of the pack of the counts, if the run began with one.
        {progress_bar}
        {device}

        Raises
        ------
        FileNotFoundError, sccvae.ModelFileError
            The folder has no checkpoint, or it is damaged, of another format, or of another class.
        ValueError
            The data are not those of the run.

        Examples
        --------
        >>> model = type(model)(adata)  # or sccvae.SCCVAE(adata)
        >>> model.train(max_epochs=2, checkpoint="my_run", checkpoint_every=2)
        >>> again = type(model).resume("my_run", adata)
        >>> int(again.history["epoch"].max())
        2
        """
        progress_bar = flag("progress_bar", progress_bar)
        kept = checked_storage(None, cache_dir).cache_dir
        model, run = resumed(cls, path, source, device, kept)
        model._run(run, progress_bar)
        return model
