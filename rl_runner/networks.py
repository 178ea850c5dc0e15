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
from rl_runner.wiring import names, wire

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


def widened(x: Tensor) -> Tensor:
    """float32 for bfloat16."""
    return x.float() if x.dtype is torch.bfloat16 else x


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


class LayerNorm(nn.Module):
    """Layer normalisation with gain and bias `[*lead, 1, n]` (Ba et al. 2016)."""

    def __init__(self, n: int, lead: tuple[int, ...] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*lead, 1, n))
        self.bias = nn.Parameter(torch.zeros(*lead, 1, n))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(widened(x), x.shape[-1:]) * self.weight + self.bias


class MLP(nn.Module):
    """A multilayer perceptron: affine, optional layer norm, activation, for each hidden layer; then an affine output.

    `hidden`: widths of the hidden layers. `layer_norm`: normalise before each activation. `noisy`: σ₀ of noise in every
    layer, which explores in place of ε (Fortunato et al. 2018: 0.5).
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
        layer_norm: bool,
        outputs: int = 1,
        noisy: PositiveFloat | None = None,
    ):
        super().__init__()
        self.outputs, self.noisy = outputs, noisy
        widths = [n_in, *hidden]
        self.hidden = nn.ModuleList(Linear(i, o, lead, generator, noisy=noisy) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(LayerNorm(n, lead) for n in hidden) if layer_norm else None
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

    def trunk(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """The last hidden layer's activations."""
        for i, (layer, part) in enumerate(zip(self.hidden, self.parts(noise), strict=False)):
            x = layer(x, part)
            x = self.activation(self.norms[i](x) if self.norms is not None else x)
        return x

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.output(self.trunk(x, noise), self.parts(noise)[len(self.hidden)])


class Dueling(MLP):
    """Q = V + A - mean A over the actions, for each of the `outputs`; a shared trunk (Wang et al. 2016, eq. 9)."""

    needs_discrete_actions = True

    def add_output(self, n_in: int, n_out: int, lead: tuple[int, ...], generator: torch.Generator | None) -> None:
        super().add_output(n_in, n_out, lead, generator)
        self.value = Linear(n_in, self.outputs, lead, generator, exact=True, noisy=self.noisy)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        trunk, parts = self.trunk(x, noise), self.parts(noise)
        advantage = self.output(trunk, parts[-2]).unflatten(-1, (-1, self.outputs))
        return (self.value(trunk, parts[-1]).unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)).flatten(-2)


class Net(nn.Module):
    """A configured network behind an encoder: observations `[B, *obs]`, maybe actions, to `[*lead, B, n_out]`.

    A network whose constructor names `spec` reads the observations as they are, and a critic's actions as a second
    argument; one whose `forward` names `training` is told whether it learns. One with an `n_noise` takes so many
    standard normal numbers as `noise`, or None for none.
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
        self.told = names(self.net.forward, "training")
        self.n_noise: int = getattr(self.net, "n_noise", 0)

    def inputs(self, obs: Tensor, *action: Tensor) -> tuple[Tensor, ...]:
        """What the network is called with."""
        if self.encoder is None:
            return obs, *action
        features = self.encoder(obs)
        return (torch.cat([features, *action], dim=-1) if action else features,)

    def output(self, *inputs: Tensor, training: bool, noise: Tensor | None = None) -> Tensor:
        """The network's output for observations, and actions where it takes them."""
        told: dict[str, Any] = {"training": training} if self.told else {}
        if noise is not None:
            told["noise"] = noise
        return widened(self.net(*self.inputs(*inputs), **told))


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

    def forward(self, obs: Tensor, action: Tensor, training: bool = False) -> Tensor:
        return self.output(obs, action, training=training)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q_1(s, a) `[B, K]`, without computing the others."""
        tensors = {name: t[0] if t.dim() else t for name, t in self.net.state_dict(keep_vars=True).items()}
        return widened(functional_call(self.net, tensors, self.inputs(obs, action)))


class DeterministicActor(Net):
    """μ(s) in [-1, 1]: `[B, *obs]` to `[B, act]`."""

    def __init__(self, spec: Spec, network: NetworkFactory, encoder: Any, generator: torch.Generator):
        assert spec.action_dim is not None
        super().__init__(spec, network, encoder, generator, spec.action_dim)

    def forward(self, obs: Tensor, training: bool = False) -> Tensor:
        return torch.tanh(self.output(obs, training=training))


class GaussianActor(Net):
    """Mean and log standard deviation before squashing: `[B, *obs]` to two `[B, act]`; log σ clamped to `bounds`."""

    def __init__(
        self,
        spec: Spec,
        network: NetworkFactory,
        encoder: Any,
        generator: torch.Generator,
        bounds: tuple[float, float],
    ):
        assert spec.action_dim is not None
        super().__init__(spec, network, encoder, generator, 2 * spec.action_dim)
        self.bounds = bounds

    def forward(self, obs: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        mean, log_std = self.output(obs, training=training).chunk(2, dim=-1)
        return mean, log_std.clamp(*self.bounds)


class CategoricalActor(Net):
    """log π(·|s) of every discrete action: `[B, *obs]` to `[B, A]`."""

    def __init__(self, spec: Spec, network: NetworkFactory, encoder: Any, generator: torch.Generator):
        assert spec.num_actions is not None
        super().__init__(spec, network, encoder, generator, spec.num_actions)

    def forward(self, obs: Tensor, training: bool = False) -> Tensor:
        return self.output(obs, training=training).log_softmax(dim=-1)
