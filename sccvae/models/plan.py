"""The training plan of a run, from the arguments of `train`."""

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from sccvae.training.loop import Plan
from sccvae.validation.arguments import FLOAT32, MOST, check_choice, flag, real, whole

_BY_TYPE: dict[type, Callable[[str, Any], Any]] = {int: whole, float: real, bool: flag}  # of a field -> its check


def default_epochs(n_cells: int) -> int:
    """Default number of epochs: 35, or the number that makes 1,200 to 5,000 steps of 128 cells; at least 5."""
    n_steps = min(max(35 * n_cells / 128, 1200), 5000)
    return max(5, round(n_steps * 128 / n_cells))


def default_batch_size(n_cells: int, device: torch.device) -> int:
    """Default number of cells per step: 128, and on a GPU up to 1,024 if five epochs still have 4,500 steps."""
    if device.type != "cuda":
        return 128
    return max((size for size in (256, 512, 1024) if 5 * n_cells >= 4500 * size), default=128)


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
