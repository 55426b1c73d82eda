"""Bias plus covariate offset as a table of rows, in the form that `kernels.table` reads."""

import torch
from torch.nn import Parameter

from sccvae.data.counts import Minibatch
from sccvae.kernels.table import Rows
from sccvae.modules.networks import CovariateOffset


class OffsetTable:
    """A bias and a covariate offset: a row shared by all cells, one for each batch, or (more covariates) each cell."""

    def __init__(self, bias: Parameter, offset: CovariateOffset):
        self.bias, self.offset, self.levels = bias, offset, list(offset.levels)
        self.by_cell = len(offset.used) > 1 or hasattr(offset, "slopes")

    def table(self, x: Minibatch) -> Rows:
        """Return the table, (rows, n_out), with the row of each cell."""
        bias = self.bias.detach()
        if self.by_cell:
            own = self.offset(bias.expand(x.n_cells, -1), x).detach()
            return Rows(own, torch.arange(x.n_cells, device=own.device), own=True)
        if self.levels:
            return Rows(self.levels[0].detach() + bias, x.codes[:, self.offset.used[0]].contiguous())
        return Rows(bias[None], x.codes.new_zeros(x.n_cells))
