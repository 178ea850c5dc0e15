"""Networks whose parameters may carry leading axes, so that an ensemble (or a population) is one network.

Parameters are `[*lead, ...]`; inputs `[..., B, n_in]` broadcast against them; outputs are `[*lead, B, n_out]`.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, Protocol

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from rl_runner.envs import Spec

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
    """What the `network` group composes to: everything but the dimensions is decided."""

    def __call__(
        self, *, n_in: int, n_out: int, lead: tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> nn.Module:
        """A network from `[..., B, n_in]` to `[*lead, B, n_out]`."""


class Linear(nn.Module):
    """Affine map with weight `[*lead, in, out]` and bias `[*lead, 1, out]`; PyTorch's own initialisation U(±1/√in)."""

    def __init__(self, n_in: int, n_out: int, lead: tuple[int, ...] = (), generator: torch.Generator | None = None):
        super().__init__()
        bound = n_in**-0.5
        self.weight = nn.Parameter(torch.empty(*lead, n_in, n_out).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(*lead, 1, n_out).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2 and x.dim() == 2:
            return torch.addmm(self.bias, x, self.weight)
        return x @ self.weight + self.bias


class LayerNorm(nn.Module):
    """Layer normalisation with gain and bias `[*lead, 1, n]` (Ba et al. 2016)."""

    def __init__(self, n: int, lead: tuple[int, ...] = ()):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*lead, 1, n))
        self.bias = nn.Parameter(torch.zeros(*lead, 1, n))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


class MLP(nn.Module):
    """A multilayer perceptron: affine, optional layer norm, activation, for each hidden layer; then an affine output.

    `hidden`: widths of the hidden layers. `layer_norm`: normalise before each activation.
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
    ):
        super().__init__()
        widths = [n_in, *hidden]
        self.hidden = nn.ModuleList(Linear(i, o, lead, generator) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(LayerNorm(n, lead) for n in hidden) if layer_norm else None
        self.output = Linear(widths[-1], n_out, lead, generator)
        self.activation = ACTIVATIONS[activation]

    def trunk(self, x: Tensor) -> Tensor:
        """The last hidden layer's activations."""
        for i, layer in enumerate(self.hidden):
            x = layer(x)
            x = self.activation(self.norms[i](x) if self.norms is not None else x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.trunk(x))


class Dueling(MLP):
    """Q = V + A - mean A, value and advantage from a shared trunk (Wang et al. 2016, eq. 9)."""

    needs_discrete_actions = True

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
    ):
        super().__init__(
            n_in=n_in,
            n_out=n_out,
            lead=lead,
            generator=generator,
            hidden=hidden,
            activation=activation,
            layer_norm=layer_norm,
        )
        self.value = Linear([n_in, *hidden][-1], 1, lead, generator)

    def forward(self, x: Tensor) -> Tensor:
        trunk = self.trunk(x)
        advantage = self.output(trunk)
        return self.value(trunk) + advantage - advantage.mean(-1, keepdim=True)


def features(obs: Tensor, spec: Spec) -> Tensor:
    """Observations `[B, *obs]` as network input `[B, n]`: Discrete one-hot, uint8 scaled to [0, 1], the rest flat."""
    if spec.num_states is not None:
        return F.one_hot(obs, spec.num_states).float()
    if spec.obs_dtype == torch.uint8:
        obs = obs.float() / 255
    return obs.reshape(*obs.shape[: obs.dim() - len(spec.obs_shape)], -1)


def num_features(spec: Spec) -> int:
    """Width of `features(obs, spec)`."""
    return spec.num_states if spec.num_states is not None else torch.Size(spec.obs_shape).numel()


class QNetwork(nn.Module):
    """Q(s, ·) of every discrete action: `[B, *obs]` to `[B, A]`."""

    def __init__(self, spec: Spec, network: NetworkFactory, generator: torch.Generator):
        super().__init__()
        assert spec.num_actions is not None
        self.spec = spec
        self.net = network(n_in=num_features(spec), n_out=spec.num_actions, generator=generator)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(features(obs, self.spec))


class Critics(nn.Module):
    """An ensemble of Q(s, a): observations `[B, *obs]` and actions `[B, act]` to values `[E, B]`."""

    def __init__(self, spec: Spec, network: NetworkFactory, size: int, generator: torch.Generator):
        super().__init__()
        assert spec.action_dim is not None
        self.spec = spec
        n_in = num_features(spec) + spec.action_dim
        self.net = network(n_in=n_in, n_out=1, lead=(size,), generator=generator)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.net(self._inputs(obs, action)).squeeze(-1)

    def first(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q_1(s, a) `[B]`, without computing the others."""
        parameters = {name: p[0] for name, p in self.net.named_parameters()}
        return functional_call(self.net, parameters, (self._inputs(obs, action),)).squeeze(-1)

    def _inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        return torch.cat([features(obs, self.spec), action], dim=-1)


class DeterministicActor(nn.Module):
    """μ(s) in [-1, 1]: `[B, *obs]` to `[B, act]`."""

    def __init__(self, spec: Spec, network: NetworkFactory, generator: torch.Generator):
        super().__init__()
        assert spec.action_dim is not None
        self.spec = spec
        self.net = network(n_in=num_features(spec), n_out=spec.action_dim, generator=generator)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.tanh(self.net(features(obs, self.spec)))


class GaussianActor(nn.Module):
    """Mean and log standard deviation before squashing: `[B, *obs]` to two `[B, act]`; log σ clamped."""

    def __init__(
        self, spec: Spec, network: NetworkFactory, generator: torch.Generator, log_std_min: float, log_std_max: float
    ):
        super().__init__()
        assert spec.action_dim is not None
        self.spec = spec
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.net = network(n_in=num_features(spec), n_out=2 * spec.action_dim, generator=generator)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(features(obs, self.spec)).chunk(2, dim=-1)
        return mean, log_std.clamp(self.log_std_min, self.log_std_max)
