"""Policies: what a network's output means for actions; `[B, *obs]` to what each kind of policy is made of."""

from typing import Any

import torch
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.networks import Net, NetworkFactory


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
