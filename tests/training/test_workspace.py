"""Arrays that a step reuses."""

import pytest
import torch

from sccvae.kernels.table import APART
from sccvae.training.workspace import Workspace, gradient_buffer


def test_arrays_are_kept_and_grow():
    arrays = Workspace()
    a = arrays("a", 4, 3)
    assert a.shape == (4, 3)
    assert arrays("a", 4, 3) is a
    assert arrays("a", 2, 3).data_ptr() == a.data_ptr()
    assert arrays("b", 4, 3).data_ptr() != a.data_ptr()
    larger = arrays("a", 5, 3)
    assert larger.data_ptr() != a.data_ptr()
    assert arrays("a", 4, 3).data_ptr() == larger.data_ptr()


@pytest.mark.parametrize("shape", [(1,), (3, 5), (128, 20)])
def test_an_array_is_apart_from_all_others(shape):
    a = Workspace()("a", *shape)
    stored = a.untyped_storage().nbytes() // a.element_size()
    assert a.storage_offset() >= APART
    assert stored - a.storage_offset() - a.numel() >= APART
    assert a.data_ptr() % 64 == 0


def test_the_gradient_buffer_a_gradient_is_made_once():
    w = torch.nn.Parameter(torch.zeros(2))
    assert gradient_buffer(w) is w.grad
    assert gradient_buffer(w) is gradient_buffer(w)
