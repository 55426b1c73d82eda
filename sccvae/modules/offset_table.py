"""Bias plus covariate offset as a table, in the form that the compiled passes read."""

import numpy as np
from torch.nn import Parameter

from sccvae.data.counts import Minibatch
from sccvae.kernels.cpu.count_likelihood import Table
from sccvae.modules.networks import CovariateOffset


class OffsetTable:
    """A bias and a covariate offset: a row shared by all cells, one for each batch, or (more covariates) each cell."""

    def __init__(self, bias: Parameter, offset: CovariateOffset):
        self.bias, self.offset, self.levels = bias, offset, list(offset.levels)
        self.by_cell = len(offset.used) > 1 or hasattr(offset, "slopes")

    def table(self, x: Minibatch) -> Table:
        """Return the table, (rows, n_out), with the row of each cell."""
        bias = self.bias.detach()
        if self.by_cell:
            own = self.offset(bias.expand(x.n_cells, -1), x).detach()
            return Table(own.numpy(), np.arange(x.n_cells), own=True)
        if self.levels:
            return Table(self.levels[0].detach().numpy() + bias.numpy(), codes_of(x, self.offset.used[0]))
        return Table(bias.numpy()[None], np.zeros(x.n_cells, np.int64))


def codes_of(x: Minibatch, column: int) -> np.ndarray:
    """Return the codes of a categorical covariate, (cells,), contiguous."""
    return np.ascontiguousarray(x.codes.numpy()[:, column])
