"""Networks of residual blocks: SimBa's, BRO's and FlashSAC's are one class and differ in where norms stand."""

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from rl_runner.errors import UserError
from rl_runner.layers import BatchNorm, LayerNorm, RMSNorm, unit_norm_, widened
from rl_runner.networks import ACTIVATIONS, Activation, Linear


class Residual(nn.Module):
    """An affine map to `width` units, `blocks` of x + f(x) that are `expansion` times as wide inside, an affine output.

    `block`: where norms stand, and how weights begin (biases at 0). `pre_layer` (SimBa, Lee et al. 2024): f is a layer
    norm, affine, activation, affine; one more norm before the output. He's normal weights in f, orthogonal ones around.
    `post_layer` (BRO, Nauman et al. 2024): a layer norm behind each affine map, and the activation behind all but f's
    last; orthogonal weights times √2. `post_batch` (FlashSAC, Kim et al. 2026): batch norm and activation behind both
    maps of f, inputs normalised, too, and an RMS norm before the output; orthogonal weights.
    `unit_norm`: the weights of each hidden unit have the norm 1, at first and after each step.
    """

    def __init__(
        self,
        *,
        n_in: int,
        n_out: int,
        lead: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        block: Literal["pre_layer", "post_layer", "post_batch"],
        width: PositiveInt,
        blocks: PositiveInt,
        expansion: PositiveInt,
        activation: Activation,
        unit_norm: bool = False,
    ):
        super().__init__()
        pre, batch = block == "pre_layer", block == "post_batch"
        if unit_norm and pre:
            raise UserError("network.unit_norm=true: needs a norm behind each layer: add network.block=post_batch")

        @torch.no_grad()
        def affine(n_in: int, n_out: int, he: bool = False, exact: bool = False) -> Linear:
            layer = Linear(n_in, n_out, lead, generator, exact)
            layer.bias.zero_()
            for matrix in layer.weight.view(-1, n_in, n_out):
                if he:
                    matrix.normal_(0, (2 / n_in) ** 0.5, generator=generator)
                else:
                    nn.init.orthogonal_(matrix, 2**0.5 if block == "post_layer" else 1.0, generator)
            return layer

        inside, norm = expansion * width, BatchNorm if batch else LayerNorm
        self.block, self.activation = block, ACTIVATIONS[activation]
        self.first = affine(n_in, width)
        self.up = nn.ModuleList(affine(width, inside, he=pre) for _ in range(blocks))
        self.down = nn.ModuleList(affine(inside, width, he=pre) for _ in range(blocks))
        self.output = affine(width, n_out, exact=True)
        self.input_norm = BatchNorm(n_in, lead) if batch else None
        self.first_norm = LayerNorm(width, lead) if block == "post_layer" else None
        self.up_norms = nn.ModuleList(norm(width if pre else inside, lead) for _ in range(blocks))
        self.down_norms = nn.ModuleList(norm(width, lead) for _ in range(0 if pre else blocks))
        self.last_norm = LayerNorm(width, lead) if pre else RMSNorm(width, lead) if batch else None
        for layer in (self.first, *self.up, *self.down) if unit_norm else ():
            weight: Tensor = layer.weight
            weight.unit_norm = True  # type: ignore[attr-defined] # `build` looks for it
            unit_norm_(weight)

    def forward(self, x: Tensor, training: bool = False) -> Tensor:
        act = self.activation
        x = widened(self.first(x if self.input_norm is None else self.input_norm(x, training)))
        if self.first_norm is not None:
            x = act(self.first_norm(x))
        for i, (up, down, norm) in enumerate(zip(self.up, self.down, self.up_norms, strict=True)):
            if self.block == "pre_layer":
                x = x + down(act(up(norm(x))))
            else:
                change = self.down_norms[i](down(act(norm(up(x), training))), training)
                x = x + (act(change) if self.block == "post_batch" else change)
        return self.output(x if self.last_norm is None else self.last_norm(x))
