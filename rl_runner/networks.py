"""Networks whose parameters may carry leading axes, so that an ensemble (or a population) is one network.

Parameters are `[*lead, ...]`; inputs `[..., B, n_in]` broadcast against them; outputs are `[*lead, B, n_out]`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rl_runner.envs import Spec
from rl_runner.errors import UserError
from rl_runner.layers import NORMS, BatchNorm, dropped, unit_norm_, widened
from rl_runner.wiring import BelowOne, names, wire

Norm = Literal["none", "layer", "batch"]
Activation = Literal["relu", "tanh", "silu", "gelu", "elu", "leaky_relu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
}


class NetworkFactory(Protocol):
    """What the groups `network`, `actor_network` and `critic_network` compose to: all is decided but the dimensions."""

    def __call__(
        self, *, n_out: int, lead: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> nn.Module:
        """A network from `[..., B, n_in]`, or from observations if it asks for `spec`, to `[*lead, B, n_out]`.

        It may ask for `outputs` besides: so many of the n_out belong to one action.
        """


# Products of fewer weights stay in float32 under autocast, which would not make them faster.
FEWEST_IN_BFLOAT16 = 128 * 128


class Linear(nn.Module):
    """Affine map with weight `[*lead, in, out]` and bias `[*lead, 1, out]`; PyTorch's own initialisation U(±1/√in).

    `exact`: whatever the precision, the product is of float32, as for values and actions. `noisy`: σ₀ of factorised
    noise (Fortunato et al. 2018): both have learned deviations, σ₀/√in at first, and a forward pass with noise
    `[in + out]` is of W + σ f(ε_in) f(ε_out)ᵀ and b + σ f(ε_out), f(x) = sgn(x)√|x|; one without is of W and b.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        lead: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        exact: bool = False,
        noisy: float | None = None,
    ):
        super().__init__()
        bound = n_in**-0.5
        self.weight = nn.Parameter(torch.empty(*lead, n_in, n_out).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(*lead, 1, n_out).uniform_(-bound, bound, generator=generator))
        self.autocast = not exact and n_in * n_out >= FEWEST_IN_BFLOAT16
        self.n_noise = n_in + n_out if noisy else 0
        if noisy:
            self.weight_std = nn.Parameter(torch.full_like(self.weight, noisy * bound))
            self.bias_std = nn.Parameter(torch.full_like(self.bias, noisy * bound))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        if self.autocast or not torch.is_autocast_enabled(x.device.type):
            return self.affine(x, noise)
        with torch.autocast(x.device.type, enabled=False):
            return self.affine(widened(x), noise)

    def affine(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """x W + b."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if noise is not None:
            noise = noise.sign() * noise.abs().sqrt()
            rows, columns = noise[..., : weight.shape[-2], None], noise[..., None, weight.shape[-2] :]
            weight, bias = weight + self.weight_std * rows * columns, bias + self.bias_std * columns
        if weight.dim() == 2 and x.dim() == 2:
            return torch.addmm(bias, x, weight)
        return x @ weight + bias


class MLP(nn.Module):
    """A multilayer perceptron: affine, maybe a norm, activation, for each hidden layer; then an affine output.

    `hidden`: widths of the hidden layers. `norm`: what normalises in each, before the activation or, with
    `norm_after_activation`, behind it; `batch` normalises the inputs, too.
    `dropout`: the share of units that are left out behind each affine map, for critics while they learn. `unit_norm`:
    the weights of each hidden unit have the norm 1, at first and after each step. `noisy`: σ₀ of noise in every layer,
    which explores in place of ε (Fortunato et al. 2018: 0.5).
    """

    def __init__(
        self,
        *,
        n_in: int,
        n_out: int,
        lead: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
        hidden: Sequence[PositiveInt],
        activation: Activation,
        norm: Norm = "none",
        norm_after_activation: bool = False,
        dropout: BelowOne = 0.0,
        unit_norm: bool = False,
        outputs: int = 1,
        noisy: PositiveFloat | None = None,
    ):
        super().__init__()
        self.outputs, self.noisy = outputs, noisy
        self.norm_after_activation, self.dropout = norm_after_activation, dropout
        widths = [n_in, *hidden]
        layers = [Linear(i, o, lead, generator, noisy=noisy) for i, o in pairwise(widths)]
        self.hidden = nn.ModuleList(layers)
        kind = NORMS.get(norm)
        self.norms = nn.ModuleList(kind(n, lead) for n in hidden) if kind else None
        self.input_norm = BatchNorm(n_in, lead) if kind is BatchNorm else None
        if unit_norm and kind is None:
            raise UserError("network.unit_norm=true: needs a norm behind each layer: add network.norm=batch or layer")
        for layer in layers if unit_norm else ():
            layer.weight.unit_norm = True  # type: ignore[attr-defined] # `build` looks for it
            unit_norm_(layer.weight)
        self.activation = ACTIVATIONS[activation]
        self.add_output(widths[-1], n_out, lead, generator)
        self.noise_sizes = [layer.n_noise for layer in self.modules() if isinstance(layer, Linear)]
        self.n_noise = sum(self.noise_sizes)

    def add_output(self, n_in: int, n_out: int, lead: tuple[int, ...], generator: torch.Generator | None) -> None:
        """The layer after the last hidden one."""
        self.output = Linear(n_in, n_out, lead, generator, exact=True, noisy=self.noisy)

    def parts(self, noise: Tensor | None) -> Sequence[Tensor | None]:
        """The noise of each layer, from the first to the last, of the whole network's `[n_noise]`."""
        return [None] * len(self.noise_sizes) if noise is None else noise.split(self.noise_sizes, dim=-1)

    def trunk(
        self, x: Tensor, training: bool = False, seed: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """The last hidden layer's activations; with a seed, which decides of each unit, some are left out."""
        if self.input_norm is not None:
            x = self.input_norm(x, training)
        for i, (layer, part) in enumerate(zip(self.hidden, self.parts(noise), strict=False)):
            x = layer(x, part)
            if self.dropout and seed is not None:
                x = dropped(x, self.dropout, seed + i)
            if self.norms is None:
                x = self.activation(x)
            elif self.norm_after_activation:
                x = self.norms[i](self.activation(x), training)
            else:
                x = self.activation(self.norms[i](x, training))
        return x

    def forward(
        self, x: Tensor, training: bool = False, seed: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        return self.output(self.trunk(x, training, seed, noise), self.parts(noise)[len(self.hidden)])


class Dueling(MLP):
    """Q = V + A - mean A over the actions, for each of the `outputs`; a shared trunk (Wang et al. 2016, eq. 9)."""

    needs_discrete_actions = True

    def add_output(self, n_in: int, n_out: int, lead: tuple[int, ...], generator: torch.Generator | None) -> None:
        super().add_output(n_in, n_out, lead, generator)
        self.value = Linear(n_in, self.outputs, lead, generator, exact=True, noisy=self.noisy)

    def forward(
        self, x: Tensor, training: bool = False, seed: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        trunk, parts = self.trunk(x, training, seed, noise), self.parts(noise)
        advantage = self.output(trunk, parts[-2]).unflatten(-1, (-1, self.outputs))
        return (self.value(trunk, parts[-1]).unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)).flatten(-2)


class Net(nn.Module):
    """A configured network behind an encoder: observations `[B, *obs]`, maybe actions, to `[*lead, B, n_out]`.

    A network whose constructor names `spec` reads the observations as they are, and a critic's actions as a second
    argument; one whose `forward` names `training` is told whether it learns, one that names `seed` what its dropout is.
    One with an `n_noise` takes so many standard normal numbers as `noise`, or None for none.
    """

    def __init__(
        self,
        spec: Spec,
        network: NetworkFactory,
        encoder: Any,
        generator: torch.Generator,
        outputs: int,
        n_action: int = 0,
        lead: tuple[int, ...] = (),
        per_action: int = 1,
    ):
        super().__init__()
        self.encoder = None if names(network, "spec") else encoder
        sizes = {"n_in": encoder.n_out + n_action, "n_out": outputs, "lead": lead, "outputs": per_action}
        self.net = wire(network, {**sizes, "generator": generator, "spec": spec})
        self.net.eval()  # whether it learns is an argument here, never a mode
        self.told = [name for name in ("training", "seed", "noise") if names(self.net.forward, name)]
        self.drops = isinstance(self.net, MLP) and self.net.dropout > 0
        self.normalises_batches = any(isinstance(module, BatchNorm) for module in self.net.modules())
        self.n_noise: int = getattr(self.net, "n_noise", 0)

    def inputs(self, obs: Tensor, *action: Tensor) -> tuple[Tensor, ...]:
        """What the network is called with."""
        if self.encoder is None:
            return obs, *action
        features = self.encoder(obs)
        return (torch.cat([features, *action], dim=-1) if action else features,)

    def output(self, *inputs: Tensor, **told: Any) -> Tensor:
        """The network's output for observations, and actions where it takes them."""
        return widened(self.net(*self.inputs(*inputs), **{name: told[name] for name in self.told if name in told}))


class QNetwork(Net):
    """Q(s, ·) of every discrete action: `[B, *obs]` to `[B, A, K]`, K outputs of the value head each.

    With `lead=(E,)` an ensemble of them, to `[E, B, A, K]`.
    """

    def __init__(
        self,
        spec: Spec,
        network: NetworkFactory,
        encoder: Any,
        outputs: int,
        generator: torch.Generator,
        lead: tuple[int, ...] = (),
    ):
        assert spec.num_actions is not None
        super().__init__(spec, network, encoder, generator, spec.num_actions * outputs, lead=lead, per_action=outputs)
        self.shape = (spec.num_actions, outputs)

    def forward(self, obs: Tensor, training: bool = False, noise: Tensor | None = None) -> Tensor:
        return self.output(obs, training=training, noise=noise).unflatten(-1, self.shape)


class Critics(Net):
    """An ensemble of Q(s, a): observations `[B, *obs]` and actions `[B, act]` to `[E, B, K]`."""

    def __init__(
        self, spec: Spec, network: NetworkFactory, encoder: Any, outputs: int, size: int, generator: torch.Generator
    ):
        assert spec.action_dim is not None
        super().__init__(spec, network, encoder, generator, outputs, spec.action_dim, lead=(size,))

    def forward(self, obs: Tensor, action: Tensor, training: bool = False, seed: Tensor | None = None) -> Tensor:
        return self.output(obs, action, training=training, seed=seed)

    def joint(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, next_action: Tensor, seed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Q(s, a), and Q(s', a') without gradient, `[E, B, K]` each, by one pass in training over both (CrossQ)."""
        both = torch.cat([obs, next_obs]), torch.cat([action, next_action])
        if type(self.net) is MLP:  # a graph leaves out the last layer of whichever pair's values are not asked for
            (features,) = self.inputs(*both)
            trunk = self.net.trunk(features, training=True, seed=seed)
            out, next_out = (self.net.output(pair) for pair in trunk.chunk(2, dim=-2))
        else:
            out, next_out = self(*both, training=True, seed=seed).chunk(2, dim=-2)
        return out, next_out.detach()

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q_1(s, a) `[B, K]`, without computing the others."""
        tensors = {name: t[0] if t.dim() else t for name, t in self.net.state_dict(keep_vars=True).items()}
        return widened(functional_call(self.net, tensors, self.inputs(obs, action)))
