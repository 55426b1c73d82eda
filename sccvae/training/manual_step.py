"""Gradients of a training step derived by hand: the same numbers as autograd's, in a few operations.

`VAE.forward` defines the loss. Under autograd a third of a step is some 150 small operations, each with an array of its
own. Here the few operations of a table (`kernels.table`) stand between the matrix products, and arrays are reused. The
step is written once, for every table.

Each part has `forward` and `backward`. `backward` is called in the opposite order: it takes the gradient of the loss
with respect to the part's output, returns that with respect to its input, and fills the gradients of its parameters.
Names of gradients begin with `grad_`.

    counts -> FirstLayer -> Layers -> samples of z and log l -> Layers -> heads -> loss
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import Parameter

from sccvae.data.counts import Minibatch
from sccvae.kernels.parallel import copy
from sccvae.kernels.table import HeadGradients, Heads, Operations, Rows
from sccvae.modules.distributions import Gaussian
from sccvae.modules.networks import (
    BOUNDS_L,
    BOUNDS_Z,
    LEAST_L,
    Block,
    CovariateOffset,
    Decoder,
    Linear,
    SparseLinear,
    noise_of_units,
)
from sccvae.modules.offset_table import OffsetTable
from sccvae.modules.vae import VAE
from sccvae.training.term_gradients import gradients_of_term, total
from sccvae.training.workspace import Workspace, buffer_or, fill, gradient_buffer

NO_NOISE = torch.empty(0, 0, dtype=torch.int16)


class Offset(OffsetTable):
    """The table of a bias and a covariate offset, with its gradients."""

    def __init__(self, operations: Operations, bias: Parameter, offset: CovariateOffset):
        super().__init__(bias, offset)
        self.operations = operations

    def backward(self, x: Minibatch, grad_table: torch.Tensor) -> None:
        """Fill the gradients of bias and offset from that of the table."""
        if (grad_bias := gradient_buffer(self.bias)) is not None:
            self.operations.sum_rows(grad_table, grad_bias)
        for column, levels in zip(self.offset.used, self.levels, strict=True):
            if (grad_levels := gradient_buffer(levels)) is None:
                continue
            if self.by_cell:
                grad_levels.zero_().index_add_(0, x.codes[:, column], grad_table)
            else:
                grad_levels.copy_(grad_table)
        if hasattr(self.offset, "slopes") and (grad_slopes := gradient_buffer(self.offset.slopes)) is not None:
            torch.mm(x.continuous.t(), grad_table, out=grad_slopes)


class Layer:
    """A linear map and the block after it: (cells, n_in) -> (cells, hidden)."""

    def __init__(self, operations: Operations, linear: Linear | SparseLinear, block: Block):
        self.operations, self.linear, self.dropout = operations, linear, block.dropout
        self.offset = Offset(operations, linear.bias, block.offset)
        self.norm, self.arrays = (block.norm.weight, block.norm.bias), Workspace()

    def forward(self, h: Any, x: Minibatch, noise: torch.Generator) -> torch.Tensor:
        """Return what the next part reads; `h` is the output of the part before."""
        self.x, self.input, shape = x, h, (x.n_cells, self.linear.weight.shape[1])
        a, rate = self.product(), self.dropout.rate
        units = noise_of_units(shape, noise, a.device) if rate > 0 else NO_NOISE
        norm = (w.detach() for w in self.norm)
        given = (a, self.offset.table(x), *norm, units, self.dropout.lowest, rate)
        out, self.saved = self.operations.block(self.arrays, *given)
        return out

    def backward(self, grad_out: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the input."""
        grad_norm = [buffer_or(self.arrays, f"grad_norm_{k}", w) for k, w in enumerate(self.norm)]
        grad_a, grad_table = self.operations.block_backward(self.arrays, self.saved, grad_out, *grad_norm)
        self.offset.backward(self.x, grad_table)
        return self.product_backward(grad_a)

    def product(self) -> torch.Tensor:
        """Return the input times the weight."""
        out = self.arrays("a", len(self.input), self.linear.weight.shape[1])
        return self.operations.multiply(self.input, self.linear.weight.detach(), out)

    def product_backward(self, grad_product: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the input."""
        grad_input = self.arrays("grad_input", *self.input.shape)
        return _product_backward(self.operations, self.input, self.linear.weight, grad_product, grad_input)


class FirstLayer(Layer):
    """The encoder's first layer, of log1p(scale * counts); its input is what `Encoder.scale` returns."""

    def product(self) -> torch.Tensor:
        """Return log1p(scale * counts) times the weight."""
        weight = self.linear.weight.detach()
        out, self.encoded = self.operations.encode(self.arrays, self.x, self.input, weight)
        return out

    def product_backward(self, grad_product: torch.Tensor) -> torch.Tensor:
        """Fill the gradient of the weight; the counts need none."""
        if (grad_weight := gradient_buffer(self.linear.weight)) is not None:
            self.operations.encode_backward(self.encoded, grad_product, grad_weight)
        return grad_product


class Sample:
    """Means and log variances of a Gaussian, a sample from it, and its KL divergence from a Gaussian prior."""

    def __init__(self, operations: Operations, linear: Linear, *bounds: float, least: float | None = None):
        """`bounds`: lowest and highest log variance, and what is added to the variance. `least`: lowest mean."""
        self.operations, self.linear, self.bounds, self.least = operations, linear, bounds, least
        self.arrays = Workspace()

    def forward(
        self, h: torch.Tensor, noise: torch.Tensor, shift: torch.Tensor, prior_mean, prior_variance
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sample, (cells, n), and the KL of each cell; `noise` is (cells, n), the others (cells,)."""
        self.input, (n_cells, n) = h, noise.shape
        head = torch.addmm(self.linear.bias, h, self.linear.weight, out=self.arrays("head", n_cells, 2 * n))
        if self.least is not None:
            self.below = head[:, :n] < self.least
            head[:, :n].clamp_(min=self.least)
        given = (head, self.bounds, shift, prior_mean, prior_variance, noise)
        sample, self.variance, kl, self.saved = self.operations.gaussian(self.arrays, *given)
        self.head = head
        return sample, kl

    @property
    def q(self) -> Gaussian:
        """Means (without `shift`) and variances of the last call of `forward`, (cells, n) each."""
        return Gaussian(self.head[:, : self.variance.shape[1]], self.variance)

    def backward(
        self,
        grad_sample: torch.Tensor,
        kl_weight: float,
        grad_input: torch.Tensor,
        grad_mean: torch.Tensor | None = None,
        grad_variance: torch.Tensor | None = None,
        *,
        add: bool,
    ) -> None:
        """Fill grad_input, or add to it, from the gradients of sample, mean and variance and the weight of the KL."""
        n = self.variance.shape[1]
        grad_head = self.operations.gaussian_backward(self.arrays, self.saved, grad_sample, kl_weight)
        if self.least is not None:
            grad_head[:, :n][self.below] = 0
        if grad_mean is not None:
            grad_head[:, :n] += grad_mean
        if grad_variance is not None:
            lowest, highest, added = self.bounds
            log_variance = self.head[:, n:]
            inside = (log_variance >= lowest) & (log_variance <= highest)
            grad_head[:, n:] += torch.where(inside, grad_variance * (self.variance - added), 0)
        if (grad_bias := gradient_buffer(self.linear.bias)) is not None:
            self.operations.sum_rows(grad_head, grad_bias)
        _product_backward(self.operations, self.input, self.linear.weight, grad_head, grad_input, add=add)


class Product:
    """h @ weight, (cells, hidden) -> (cells, genes), in float32; the gradient of a product is written over it."""

    dtype = torch.float32

    def __init__(self, operations: Operations, weight: Parameter):
        self.operations, self.weight, self.arrays = operations, weight, Workspace()

    def new(self, h: torch.Tensor) -> torch.Tensor:
        """Return the array for the product with `h`."""
        return self.arrays("out", len(h), self.weight.shape[1], dtype=self.dtype)

    def forward(self, h: torch.Tensor) -> None:
        """Multiply; the result is `out`."""
        self.input = h
        self.out = self.operations.multiply(h, self.weight.detach(), self.new(h))

    def forward_of_zero(self, h: torch.Tensor) -> None:
        """Return the product with a weight of 0, without multiplying; nothing goes back through it."""
        self.out = self.new(h).zero_()

    def backward(self, grad_input: torch.Tensor, *, add: bool) -> None:
        """Fill grad_input, or add to it, and fill the gradient of the weight."""
        _product_backward(self.operations, self.input, self.weight, self.out, grad_input, add=add)


class BFloat16Product(Product):
    """The product of bfloat16, which has float32's range and 8 of its 24 bits; sums over products are float32.

    Processors that support it multiply twice as many numbers at once, and half the memory is read and written. The
    weights stay float32: only the factors and the result are rounded. Biases, which hold the mean expression, are added
    afterwards.
    """

    dtype = torch.bfloat16

    def forward(self, h: torch.Tensor) -> None:
        """Multiply; the result is `out`."""
        self.input = copy(self.rounded("input", h), h)
        self.rounded_weight = copy(self.rounded("weight", self.weight), self.weight)
        self.out = self.operations.multiply(self.input, self.rounded_weight, self.new(h))

    def rounded(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return an array of bfloat16 that is kept."""
        return self.arrays(name, *like.shape, dtype=self.dtype)

    def backward(self, grad_input: torch.Tensor, *, add: bool) -> None:
        """Fill grad_input, or add to it, and fill the gradient of the weight."""
        multiply, rounded_input = self.operations.multiply, self.rounded("grad_input", grad_input)
        if (grad_weight := gradient_buffer(self.weight)) is not None:
            copy(grad_weight, multiply(self.input.t(), self.out, self.rounded("grad_weight", self.weight)))
        multiply(self.out, self.rounded_weight.t(), rounded_input)
        grad_input.add_(rounded_input) if add else grad_input.copy_(rounded_input)


class HeadsResult(NamedTuple):
    """Log-likelihood of each cell from the last hidden layer on; the gradients are kept for `backward`."""

    value: torch.Tensor  # (cells,) log p(x | z, l), less the penalty on zero inflation
    dropouts: torch.Tensor  # (cells,) expected number of inflated zeros
    grad_log_library: torch.Tensor  # (cells,) of minus the mean of `value`


class AutogradHeads:
    """The decoder's heads and any likelihood, by autograd from the last hidden layer on."""

    def __init__(self, vae: VAE):
        self.decoder, self.likelihood, self.cost = vae.decoder, vae.likelihood, vae.architecture.dropout_cost
        hidden = {id(w) for layers in (vae.decoder.linears, vae.decoder.blocks) for w in layers.parameters()}
        self.weights = [w for w in vae.decoder.parameters() if id(w) not in hidden and w.requires_grad]

    def forward(self, h: torch.Tensor, x: Minibatch, log_library: torch.Tensor, *, waits: bool) -> HeadsResult:
        """Return values and gradients; see `CountHeads.forward`."""
        with torch.enable_grad():
            inputs = [t.detach().clone().requires_grad_() for t in (h, log_library)]
            value, dropouts = self.likelihood.log_prob(x, self.decoder.heads(inputs[0], x), inputs[1], self.cost)
            grads = torch.autograd.grad(-value.mean(), [*inputs, *self.weights], allow_unused=True)
        self.grad_input, grad_log_library, *others = grads
        for w, grad in zip(self.weights, others, strict=True):
            fill(w, grad)
        if waits and (dropout := self.decoder.dropout) is not None:
            dropout.weight.grad = None
        grad_log_library = torch.zeros_like(log_library) if grad_log_library is None else grad_log_library
        return HeadsResult(value.detach(), dropouts.detach(), grad_log_library)

    def backward(self) -> torch.Tensor:
        """Return the gradient of the input."""
        return self.grad_input


class CountHeads:
    """The decoder's heads, (cells, hidden) -> (cells, genes) each, and a compiled likelihood of the counts."""

    def __init__(self, operations: Operations, decoder: Decoder, dropout_cost: float, product: type[Product]):
        self.operations, self.decoder, self.cost, self.arrays = operations, decoder, dropout_cost, Workspace()
        self.offset = Offset(operations, decoder.logits.bias, decoder.offset)
        self.logits, dropout = product(operations, decoder.logits.weight), decoder.dropout
        self.pi = None if dropout is None else (product(operations, dropout.weight), dropout.bias)
        self.at_zero = dropout is not None and not dropout.weight.any()  # while it is frozen

    def forward(self, h: torch.Tensor, x: Minibatch, log_library: torch.Tensor, *, waits: bool) -> HeadsResult | None:
        """Return values and gradients of minus their mean over cells; None where the compiled pass is not exact.

        With `waits`, the weight of the zero-inflation head gets no gradient (see the heading of `gradients`).
        """
        self.x, self.input, self.waits, pi, pi_bias = x, h, waits, None, None
        self.logits.forward(h)
        if self.pi is not None:
            self.at_zero = self.at_zero and waits
            (self.pi[0].forward_of_zero if self.at_zero else self.pi[0].forward)(h)
            pi, pi_bias = self.pi[0].out, self.pi[1].detach()
        heads = Heads(self.logits.out, self.offset.table(x), log_library, self._log_theta(), pi, pi_bias)
        weight = log_library.new_full((x.n_cells,), -1 / x.n_cells)
        found = self.operations.count_likelihood(self.arrays, x, heads, self.cost, weight)
        if found is None:
            return None
        self.found: HeadGradients = found
        return HeadsResult(found.value - x.log_factorial, found.dropouts, found.log_library)

    def _log_theta(self) -> Rows | None:
        n_cells, d = self.x.n_cells, self.decoder
        match d.dispersion:
            case "gene":
                return Rows(d.log_dispersion.detach(), self.x.codes.new_zeros(n_cells))
            case "gene-batch":
                return Rows(d.log_dispersion.detach(), self.x.codes[:, 0].contiguous())
            case "gene-cell":
                return Rows(d.dispersion_head(self.input), torch.arange(n_cells, device=self.input.device), own=True)
        return None

    def backward(self) -> torch.Tensor:
        """Return the gradient of the input."""
        found, d, grad_input = self.found, self.decoder, self.arrays("grad_input", *self.input.shape)
        self.offset.backward(self.x, found.bias)
        self.logits.backward(grad_input, add=False)
        if self.pi is not None:
            if not self.at_zero:
                self.pi[0].backward(grad_input, add=True)
            if self.waits:
                self.pi[0].weight.grad = None
            fill(self.pi[1], found.pi_bias)
        if d.per_cell and found.log_theta is not None:
            if (grad_bias := gradient_buffer(d.dispersion_head.bias)) is not None:
                self.operations.sum_rows(found.log_theta, grad_bias)
            given = (self.input, d.dispersion_head.weight, found.log_theta, grad_input)
            _product_backward(self.operations, *given, add=True)
        elif d.dispersion is not None:
            fill(d.log_dispersion, found.log_theta)
        return grad_input


class ManualStep:
    """A `gradients.Gradients` of a VAE; it draws the same noise in the same order as `VAE.forward`."""

    def __init__(self, vae: VAE, operations: Operations, otherwise: Callable, product: type[Product]):
        """`otherwise` takes the steps that the table's likelihood cannot take exactly."""
        encoder, decoder = vae.encoder, vae.decoder
        first, *others = map(_block, encoder.blocks)
        self.vae, self.otherwise, self.arrays = vae, otherwise, Workspace()
        layer = lambda linear, block: Layer(operations, _linear(linear), _block(block))  # noqa: E731
        self.first = FirstLayer(operations, encoder.first, first)
        self.encoder = [*map(layer, encoder.linears, others)]
        self.decoder = [*map(layer, decoder.linears, decoder.blocks)]
        self.z = Sample(operations, encoder.z, *BOUNDS_Z)
        self.terms = [(term, gradients_of_term(term, operations)) for term in vae.terms]
        library = encoder.library
        self.library = None if library is None else Sample(operations, library, *BOUNDS_L, least=LEAST_L)
        compiled, cost = vae.likelihood.is_compiled, vae.architecture.dropout_cost
        self.heads = CountHeads(operations, decoder, cost, product) if compiled else AutogradHeads(vae)

    @torch.no_grad()
    def __call__(
        self, x: Minibatch, noise: torch.Generator, kl_weight: float, waits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `gradients.Gradients`."""
        n, seen, device = x.n_cells, self.vae.thin(x, noise, self.vae.thinning), x.values.device
        code = self.first.forward(self.vae.encoder.scale(seen), seen, noise)
        for layer in self.encoder:
            code = layer.forward(code, seen, noise)
        normal = torch.randn(n, self.vae.architecture.n_latent, generator=noise, device=device)
        h, kl_z = self.z.forward(code, normal, none := code.new_zeros(n), none, code.new_ones(n))
        found, penalties = [], []
        for term, gradients in self.terms:
            scale = term.scale(kl_weight)
            if term.in_bound or scale:
                found.append(gradients(self.z.q, h, x, scale))
            if term.in_bound:
                kl_z += found[-1].value
                if (penalty := found[-1].penalty) is not None:
                    penalties.append(penalty)
            else:
                penalties.append(scale * found[-1].value if scale else none)
        log_library, kl_l = x.log_size, none
        if self.library is not None:
            normal = torch.randn(n, generator=noise, device=device)[:, None]
            drawn, kl_l = self.library.forward(code, normal, log_library, *self.vae.library_prior(x))
            log_library = drawn[:, 0]
        for layer in self.decoder:
            h = layer.forward(h, x, noise)
        if (likelihood := self.heads.forward(h, x, log_library, waits=waits)) is None:
            with torch.enable_grad():
                return self.otherwise(x, noise, kl_weight, waits)

        grad_h = self.heads.backward()
        for layer in reversed(self.decoder):
            grad_h = layer.backward(grad_h)
        for grad_z in (term.grad_z for term in found if term.grad_z is not None):
            grad_h += grad_z
        grad_code = self.arrays("grad_code", *code.shape)
        grad_moments = (total([term.grad_mean for term in found]), total([term.grad_variance for term in found]))
        self.z.backward(grad_h, kl_weight / n, grad_code, *grad_moments, add=False)
        if self.library is not None:
            self.library.backward(likelihood.grad_log_library[:, None], 1 / n, grad_code, add=True)
        for layer in reversed(self.encoder):
            grad_code = layer.backward(grad_code)
        self.first.backward(grad_code)

        reconstruction = likelihood.value + self.heads.cost * likelihood.dropouts
        loss = kl_weight * kl_z + kl_l - likelihood.value
        for nats in penalties:
            loss += nats
        return loss.mean(), torch.stack([reconstruction, kl_z, kl_l, *penalties])


def _product_backward(operations: Operations, h, weight, grad_product, grad_input, *, add=False) -> torch.Tensor:
    """Fill the gradients of h @ weight: grad_input, or add to it, and that of a weight that is not frozen."""
    if (grad_weight := gradient_buffer(weight)) is not None:
        operations.multiply(h.t(), grad_product, grad_weight)
    return operations.multiply(grad_product, weight.detach().t(), grad_input, add=add)


def _linear(module: torch.nn.Module) -> Linear:
    assert isinstance(module, Linear)
    return module


def _block(module: torch.nn.Module) -> Block:
    assert isinstance(module, Block)
    return module
