"""The plan of a run is checked field by field, by the types that `Plan` states."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
import torch

from sccvae.models.plan import checked_plan, count_of_processes, default_batch_size, default_epochs
from sccvae.training.loop import Plan

CHOICES = {
    "max_epochs": 3, "batch_size": 128, "learning_rate": 1e-3, "kl_warmup": 0.1, "early_stopping": True, "patience": 20,
    "gradient_clip": float("inf"), "weight_decay": 0.0, "n_draws": 1, "precision": "mixed",
}  # fmt: skip


def test_values_are_kept_as_the_types_of_the_fields():
    plan = checked_plan(**CHOICES | {"max_epochs": 3.0, "learning_rate": 1, "patience": 10**12})
    assert asdict(plan) == CHOICES | {"learning_rate": 1.0, "patience": 10**12}
    for field in fields(Plan):
        if field.type in (int, float, bool):
            assert type(getattr(plan, field.name)) is field.type


@pytest.mark.parametrize("field", [field.name for field in fields(Plan)])
def test_every_field_is_checked_under_its_name(field):
    with pytest.raises((TypeError, ValueError), match=rf"^{field} is 'no'; expected"):
        checked_plan(**CHOICES | {field: "no"})


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("max_epochs", 0, "max_epochs is 0; expected more than 0"),
        ("max_epochs", 2**31, "max_epochs is 2147483648; expected at most 2147483647"),
        ("n_draws", 2**31, "n_draws is 2147483648; expected at most"),
        ("learning_rate", 1e31, "learning_rate is 1e[+]31; expected a finite number above 0"),
        ("kl_warmup", 1.5, r"kl_warmup is 1.5; expected .* \[0, 1\]"),
        ("weight_decay", -1, "weight_decay is -1.0; expected a finite number, 0 or more"),
    ],
)
def test_ranges(field, value, text):
    with pytest.raises(ValueError, match=text):
        checked_plan(**CHOICES | {field: value})


def test_an_unknown_field_is_an_error():
    with pytest.raises(TypeError, match="momentum"):
        checked_plan(**CHOICES, momentum=0.9)


def test_default_epochs():
    assert [default_epochs(n) for n in (128, 128 * 100, 128 * 1000, 10**9)] == [1200, 35, 5, 5]


def test_default_cells_of_a_step():
    """On the CPU 128; on a GPU more, if five epochs then have 4,500 steps."""
    numbers = (1, 230_399, 230_400, 460_799, 460_800, 921_599, 921_600, 10**9)
    assert {default_batch_size(n, torch.device("cpu")) for n in numbers} == {128}
    found = [default_batch_size(n, torch.device("cuda")) for n in numbers]
    assert found == [128, 128, 256, 256, 512, 512, 1024, 1024]
    assert [default_batch_size(n, torch.device("cuda"), 4) for n in (921_599, 921_600, 4_000_000)] == [128, 256, 1024]
    assert all(5 * n / size >= 4500 for n, size in zip(numbers, found, strict=True) if size > 128)


@pytest.mark.parametrize(("size", "n"), [("", 1), ("no", 1), ("0", 1), ("1", 1), ("4", 4)])
def test_the_processes_are_counted(monkeypatch, size, n):
    monkeypatch.setenv("WORLD_SIZE", size)
    assert count_of_processes() == n
