"""Gradients of a training step derived by hand, for counts on the CPU: the same numbers as autograd's.

`VAE.forward` defines the loss. Under autograd a third of a step is some 150 small operations, each with an array of its
own. Here a few compiled passes (`layers`, `count_likelihood`) stand between the matrix products, and arrays are reused.

Each part has `forward` and `backward`. `backward` is called in the opposite order: it takes the gradient of the loss
with respect to the part's output, returns that with respect to its input, and fills the gradients of its parameters.
Names of gradients begin with `by_`.

    counts -> SparseLayer -> Layers -> Draws of z and log l -> Layers -> CountHeads -> loss
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import Parameter

from sccvae.data.counts import Minibatch
from sccvae.kernels.cpu import count_likelihood, latent, layers
from sccvae.kernels.cpu.vector_math import BFLOAT16
from sccvae.kernels.parallel import copy, multiply
from sccvae.kernels.reference import encode_gradient_into, encode_into, stored
from sccvae.modules.distributions import Gaussian
from sccvae.modules.networks import BOUNDS_L, BOUNDS_Z, LEAST_L, Block, Decoder, Linear, SparseLinear, noise_of_units
from sccvae.modules.offset_table import OffsetTable, codes_of
from sccvae.modules.vae import VAE
from sccvae.training.term_gradients import gradients_of_term
from sccvae.training.workspace import Workspace, array, gradient_buffer

NO_NOISE = torch.empty(0, 0, dtype=torch.int16)


class Offset(OffsetTable):
    """The table of a bias and a covariate offset, with its gradients."""

    def backward(self, x: Minibatch, by_table: np.ndarray) -> None:
        """From the gradient by the table to those by bias and offset."""
        by_table.sum(0, out=gradient_buffer(self.bias).numpy())
        for column, levels in zip(self.offset.used, self.levels, strict=True):
            if self.by_cell:
                gradient_buffer(levels).zero_().index_add_(0, x.codes[:, column], torch.from_numpy(by_table))
            else:
                gradient_buffer(levels).numpy()[:] = by_table
        if hasattr(self.offset, "slopes"):
            torch.mm(x.continuous.t(), torch.from_numpy(by_table), out=gradient_buffer(self.offset.slopes))


class Layer:
    """A linear map and the block after it: (cells, n_in) -> (cells, hidden)."""

    def __init__(self, linear: Linear | SparseLinear, block: Block):
        self.linear, self.shared, self.dropout = linear, Offset(linear.bias, block.offset), block.dropout
        self.rate = np.float32(block.dropout.rate)
        self.norm = block.norm.weight, block.norm.bias
        self.arrays = Workspace()

    def forward(self, h: Any, x: Minibatch, noise: torch.Generator) -> torch.Tensor:
        """Return what the next part reads; `h` is the output of the part before."""
        self.x, self.input, shape = x, h, (x.n_cells, self.linear.weight.shape[1])
        a, out = (self.arrays(name, *shape) for name in ("a", "out"))
        self.product(a)
        units = noise_of_units(shape, noise) if self.rate > 0 else NO_NOISE
        table = self.shared.table(x)
        self.normal, self.scale = self.arrays("normal", *shape).numpy(), self.arrays("scale", x.n_cells).numpy()
        kept = self.normal, self.scale, out.numpy()
        dropout = units.numpy(), self.dropout.lowest, self.rate
        layers.block(a.numpy(), table.values, table.row, *map(array, self.norm), *dropout, *kept)
        self.out, self.row, self.n_rows = out.numpy(), table.row, len(table.values)
        return out

    def backward(self, by_out: torch.Tensor) -> torch.Tensor:
        """From the gradient by the output to that by the input."""
        by_a = self.arrays("by_a", *by_out.shape)
        by_table = self.arrays("by_table", self.n_rows, by_out.shape[1]).numpy()
        kept = self.out, self.rate, array(self.norm[0]), self.row, self.normal, self.scale
        by_norm = [gradient_buffer(w).numpy() for w in self.norm]
        layers.block_gradient(by_out.numpy(), *kept, by_a.numpy(), by_table, *by_norm)
        self.shared.backward(self.x, by_table)
        return self.product_backward(by_a)

    def product(self, out: torch.Tensor) -> None:
        """Fill out with the input times the weight."""
        multiply(self.input, self.linear.weight, out)

    def product_backward(self, by_product: torch.Tensor) -> torch.Tensor:
        """From the gradient by the product to that by the input."""
        by_input = self.arrays("by_input", *self.input.shape)
        return _product_backward(self.input, self.linear.weight, by_product, by_input)


class SparseLayer(Layer):
    """The encoder's first layer, of log1p(scale * counts); its input is what `Encoder.scale` returns."""

    def product(self, out: torch.Tensor) -> None:
        """Fill out with log1p(scale * counts) times the weight, and keep the former."""
        self.values = encode_into(out, self.x, self.input, self.linear.weight.detach())

    def product_backward(self, by_product: torch.Tensor) -> torch.Tensor:
        """Only the gradient by the weight."""
        encode_gradient_into(gradient_buffer(self.linear.weight), self.x, self.values, by_product)
        return by_product


class Draw:
    """Means and log variances of a Gaussian, a draw from it, and its KL divergence from a Gaussian prior."""

    def __init__(self, linear: Linear, *bounds: float, least: float | None = None):
        """`bounds`: lowest and highest log variance, and what is added to the variance. `least`: lowest mean."""
        self.linear, self.bounds, self.arrays = linear, tuple(map(np.float32, bounds)), Workspace()
        self.least = least

    def forward(
        self, h: torch.Tensor, noise: torch.Tensor, shift: np.ndarray, prior_mean: np.ndarray, prior_variance
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The draw, (cells, n), and the KL of each cell, (cells,); `noise` (cells, n), the others (cells,)."""
        self.input, n_cells, n = h, *noise.shape
        self.shape = n_cells, 2 * n
        head = torch.addmm(self.linear.bias, h, self.linear.weight, out=self.arrays("head", *self.shape))
        if self.least is not None:
            self.below = head.numpy()[:, :n] < self.least
            head[:, :n].clamp_(min=self.least)
        variance, draw = self.arrays("variance", n_cells, n), self.arrays("draw", n_cells, n)
        kl = np.empty(n_cells, np.float32)
        self.kept = (head.numpy(), self.bounds, shift, prior_mean, prior_variance, noise.numpy(), variance.numpy())
        latent.gaussian(*self.kept, draw.numpy(), kl)
        return draw, kl

    @property
    def q(self) -> Gaussian:
        """Means (without `shift`) and variances of the last call of `forward`, (cells, n) each."""
        return Gaussian(torch.from_numpy(self.kept[0][:, : self.shape[1] // 2]), torch.from_numpy(self.kept[6]))

    def backward(
        self,
        by_draw: np.ndarray,
        kl_weight: float,
        by_input: torch.Tensor,
        by_mean: np.ndarray | None = None,
        by_variance: np.ndarray | None = None,
        *,
        add: bool,
    ) -> None:
        """Fill by_input, or add to it, from the gradients by draw, mean and variance and the weight of the KL."""
        by_head, n = self.arrays("by_head", *self.shape), self.shape[1] // 2
        values = by_head.numpy()
        latent.gaussian_gradient(*self.kept, by_draw, np.float32(kl_weight), values)
        if self.least is not None:
            values[:, :n][self.below] = 0
        if by_mean is not None:
            values[:, :n] += by_mean
        if by_variance is not None:
            lowest, highest, added = self.bounds
            log_variance, variance = self.kept[0][:, n:], self.kept[6]
            inside = (lowest <= log_variance) & (log_variance <= highest)
            values[:, n:] += np.where(inside, by_variance * (variance - added), np.float32(0))
        values.sum(0, out=gradient_buffer(self.linear.bias).numpy())
        _product_backward(self.input, self.linear.weight, by_head, by_input, add=add)


class Product:
    """h @ weight, (cells, hidden) -> (cells, genes), in float32; `Halved` is the same in half as many bits.

    The gradient by a product takes the place of the product; `bits` is that place as compiled code takes it.
    """

    dtype = torch.float32

    def __init__(self, weight: Parameter):
        self.weight, self.arrays = weight, Workspace()

    def place(self, h: torch.Tensor) -> torch.Tensor:
        """Where the product with `h` goes."""
        return self.arrays("out", len(h), self.weight.shape[1], dtype=self.dtype)

    def forward(self, h: torch.Tensor) -> None:
        """Multiply; the result is `out`."""
        self.input = h
        self.out = multiply(h, self.weight, self.place(h))

    def forward_of_zero(self, h: torch.Tensor) -> None:
        """The same where the weight is 0, without multiplying; nothing goes back through it."""
        self.out = self.place(h).zero_()

    @property
    def bits(self) -> np.ndarray:
        """The product, or the gradient by it."""
        return self.out.numpy()

    def backward(self, by_input: torch.Tensor, *, add: bool) -> None:
        """Put the gradient by the input into by_input, or add it there, and that by the weight into its place."""
        _product_backward(self.input, self.weight, self.out, by_input, add=add)


class Halved(Product):
    """The product of bfloat16, which keep float32's range and 8 of its 24 bits; sums over them are float32.

    Processors that know them multiply twice as many at once, and half the memory is read and written. The weights
    themselves stay float32: only what goes into a product is rounded, and its result, to which biases, which hold the
    mean expression, are added afterwards.
    """

    dtype = torch.bfloat16

    def forward(self, h: torch.Tensor) -> None:
        """Multiply; the result is `out`."""
        self.input = copy(self.halves("input", h), h)
        self.halved = copy(self.halves("weight", self.weight), self.weight)
        self.out = multiply(self.input, self.halved, self.place(h))

    def halves(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """An array of bfloat16 that is kept."""
        return self.arrays(name, *like.shape, dtype=self.dtype)

    @property
    def bits(self) -> np.ndarray:
        """The product, or the gradient by it."""
        return self.out.view(torch.uint16).numpy()

    def backward(self, by_input: torch.Tensor, *, add: bool) -> None:
        """Put the gradient by the input into by_input, or add it there, and that by the weight into its place."""
        by_weight, by_halved = self.halves("by_weight", self.weight), self.halves("by_input", by_input)
        copy(gradient_buffer(self.weight), multiply(self.input.t(), self.out, by_weight))
        multiply(self.out, self.halved.t(), by_halved)
        by_input.add_(by_halved) if add else by_input.copy_(by_halved)


# Where the processor does not know them, products of bfloat16 are slower than those of float32.
FASTEST = Halved if BFLOAT16 and torch.backends.mkldnn.is_available() else Product


class HeadsResult(NamedTuple):
    """Log-likelihood of each cell from the last hidden layer on; the gradients are kept for `backward`."""

    value: np.ndarray  # (cells,) log p(x | z, l), less the penalty on expected zero inflation
    dropouts: np.ndarray  # (cells,) expected number of them
    by_log_library: np.ndarray  # (cells,) gradient of minus the mean of `value`


class AutogradHeads:
    """The decoder's heads and any likelihood, by autograd from the last hidden layer on."""

    def __init__(self, vae: VAE):
        self.decoder, self.likelihood, self.cost = vae.decoder, vae.likelihood, vae.architecture.dropout_cost
        hidden = {id(w) for layers in (vae.decoder.linears, vae.decoder.blocks) for w in layers.parameters()}
        self.weights = [w for w in vae.decoder.parameters() if id(w) not in hidden]

    def forward(self, h: torch.Tensor, x: Minibatch, log_library: np.ndarray, *, waits: bool) -> HeadsResult:
        """Return values and gradients; see `CountHeads.forward`."""
        with torch.enable_grad():
            inputs = [h.detach().clone().requires_grad_(), torch.from_numpy(log_library).clone().requires_grad_()]
            value, dropouts = self.likelihood.log_prob(x, self.decoder.heads(inputs[0], x), inputs[1], self.cost)
            by = torch.autograd.grad(-value.mean(), [*inputs, *self.weights], allow_unused=True)
        self.by_input = by[0]
        for w, by_w in zip(self.weights, by[2:], strict=True):
            gradient_buffer(w).zero_() if by_w is None else gradient_buffer(w).copy_(by_w)
        if waits and (dropout := self.decoder.dropout) is not None:
            dropout.weight.grad = None
        by_log_library = np.zeros_like(log_library) if by[1] is None else by[1].numpy()
        return HeadsResult(array(value), array(dropouts), by_log_library)

    def backward(self) -> torch.Tensor:
        """Return the gradient by the input."""
        return self.by_input


class CountHeads:
    """The decoder's heads, (cells, hidden) -> (cells, genes) each, and a compiled likelihood of the counts."""

    def __init__(self, decoder: Decoder, dropout_cost: float, product: type[Product]):
        self.decoder, self.cost, self.arrays = decoder, dropout_cost, Workspace()
        self.shared = Offset(decoder.logits.bias, decoder.offset)
        self.logits, dropout = product(decoder.logits.weight), decoder.dropout
        self.pi = None if dropout is None else (product(dropout.weight), dropout.bias)
        self.at_zero = dropout is not None and not array(dropout.weight).any()  # until it no longer waits

    def forward(self, h: torch.Tensor, x: Minibatch, log_library: np.ndarray, *, waits: bool) -> HeadsResult | None:
        """Return values and gradients of minus their mean over cells; None where the compiled pass is not exact.

        With `waits`, the weight of the zero-inflation head gets no gradient (see the heading of `gradients`).
        """
        self.x, self.input, self.waits, pi, pi_bias = x, h, waits, None, None
        self.logits.forward(h)
        if self.pi is not None:
            self.at_zero = self.at_zero and waits
            (self.pi[0].forward_of_zero if self.at_zero else self.pi[0].forward)(h)
            pi, pi_bias = self.pi[0].bits, array(self.pi[1])
        heads = count_likelihood.Heads(
            self.logits.bits, self.shared.table(x), log_library, self._log_theta(), pi, pi_bias
        )
        weight = np.full(x.n_cells, -1 / x.n_cells, np.float32)
        self.by = count_likelihood.count_log_likelihood(
            stored(x), heads, self.cost, weight, in_place=True, kept=self._kept
        )
        if (by := self.by) is None:
            return None
        return HeadsResult(by.value - x.log_factorial.numpy(), by.dropouts, by.log_library)

    def _kept(self, name: str, *shape: int) -> np.ndarray:
        return self.arrays(name, *shape).numpy()

    def _log_theta(self) -> count_likelihood.Table | None:
        match self.decoder.dispersion:
            case "gene":
                return count_likelihood.Table(array(self.decoder.log_dispersion), np.zeros(self.x.n_cells, np.int64))
            case "gene-batch":
                return count_likelihood.Table(array(self.decoder.log_dispersion), codes_of(self.x, 0))
            case "gene-cell":
                own = self.decoder.dispersion_head(self.input)
                return count_likelihood.Table(array(own), np.arange(self.x.n_cells), own=True)
        return None

    def backward(self) -> torch.Tensor:
        """The gradient by the input."""
        by, d, by_input = self.by, self.decoder, self.arrays("by_input", *self.input.shape)
        self.shared.backward(self.x, by.bias)
        self.logits.backward(by_input, add=False)
        if self.pi is not None:
            if not self.at_zero:
                self.pi[0].backward(by_input, add=True)
            if self.waits:
                self.pi[0].weight.grad = None
            gradient_buffer(self.pi[1]).numpy()[:] = by.pi_bias
        if d.per_cell:
            by.log_theta.sum(0, out=gradient_buffer(d.dispersion_head.bias).numpy())
            _product_backward(self.input, d.dispersion_head.weight, torch.from_numpy(by.log_theta), by_input, add=True)
        elif d.dispersion is not None:
            gradient_buffer(d.log_dispersion).numpy()[:] = by.log_theta
        return by_input


class ByHand:
    """A `gradients.Gradients` of a VAE on the CPU; it draws the same noise in the same order as `VAE.forward`."""

    def __init__(self, vae: VAE, otherwise: Callable, product: type[Product]):
        """`otherwise` takes the steps that the compiled likelihood cannot take exactly."""
        encoder, decoder = vae.encoder, vae.decoder
        first, *others = map(_block, encoder.blocks)
        self.vae, self.otherwise, self.arrays = vae, otherwise, Workspace()
        self.first = SparseLayer(encoder.first, first)
        self.encoder = [*map(Layer, map(_linear, encoder.linears), others)]
        self.decoder = [*map(Layer, map(_linear, decoder.linears), map(_block, decoder.blocks))]
        self.z = Draw(encoder.z, *BOUNDS_Z)
        self.terms = [(term, gradients_of_term(term)) for term in vae.terms]
        self.library = None if encoder.library is None else Draw(encoder.library, *BOUNDS_L, least=LEAST_L)
        compiled, cost = vae.likelihood.is_compiled, vae.architecture.dropout_cost
        self.heads = CountHeads(decoder, cost, product) if compiled else AutogradHeads(vae)

    @torch.no_grad()
    def __call__(
        self, x: Minibatch, noise: torch.Generator, kl_weight: float, waits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `gradients.Gradients`."""
        n, seen = x.n_cells, self.vae.thin(x, noise, self.vae.thinning)
        code = self.first.forward(self.vae.encoder.scale(seen), seen, noise)
        for layer in self.encoder:
            code = layer.forward(code, seen, noise)
        normal = torch.randn(n, self.vae.architecture.n_latent, generator=noise)
        h, kl_z = self.z.forward(code, normal, none := np.zeros(n, np.float32), none, np.ones(n, np.float32))
        found, penalties = [], []
        for term, gradients in self.terms:
            scale = term.scale(kl_weight)
            if term.in_bound or scale:
                found.append(gradients(self.z.q, h, x, scale))
            if term.in_bound:
                kl_z += found[-1].value
            else:
                penalties.append(np.float32(scale) * found[-1].value if scale else none)
        log_library, kl_l = x.log_size.numpy(), none
        if self.library is not None:
            normal, prior = torch.randn(n, generator=noise)[:, None], map(array, self.vae.library_prior(x))
            drawn, kl_l = self.library.forward(code, normal, log_library, *prior)
            log_library = drawn.numpy()[:, 0]
        for layer in self.decoder:
            h = layer.forward(h, x, noise)
        if (likelihood := self.heads.forward(h, x, log_library, waits=waits)) is None:
            with torch.enable_grad():
                return self.otherwise(x, noise, kl_weight, waits)

        by_h = self.heads.backward()
        for layer in reversed(self.decoder):
            by_h = layer.backward(by_h)
        by_draw = by_h.numpy()
        for by_z in (term.by_z for term in found if term.by_z is not None):
            by_draw += by_z
        by_code = self.arrays("by_code", *code.shape)
        by_moments = (_sum([term.by_mean for term in found]), _sum([term.by_variance for term in found]))
        self.z.backward(by_draw, kl_weight / n, by_code, *by_moments, add=False)
        if self.library is not None:
            self.library.backward(likelihood.by_log_library[:, None], 1 / n, by_code, add=True)
        for layer in reversed(self.encoder):
            by_code = layer.backward(by_code)
        self.first.backward(by_code)

        value = likelihood.value
        reconstruction = value + np.float32(self.heads.cost) * likelihood.dropouts
        loss = np.float32(kl_weight) * kl_z + kl_l - value
        for nats in penalties:
            loss += nats
        return torch.tensor(loss.mean()), torch.from_numpy(np.stack([reconstruction, kl_z, kl_l, *penalties]))


def _sum(gradients: list[np.ndarray | None]) -> np.ndarray | None:
    """Sum of those that there are."""
    there = [by for by in gradients if by is not None]
    return sum(there[1:], start=there[0]) if there else None


def _product_backward(h, weight, by_product, by_input, *, add=False) -> torch.Tensor:
    """Back through by_product's h @ weight: into by_input, or added to it; the weight's gradient into its place."""
    multiply(h.t(), by_product, gradient_buffer(weight))
    return multiply(by_product, weight.t(), by_input, add=add)


def _linear(module: torch.nn.Module) -> Linear:
    assert isinstance(module, Linear)
    return module


def _block(module: torch.nn.Module) -> Block:
    assert isinstance(module, Block)
    return module
