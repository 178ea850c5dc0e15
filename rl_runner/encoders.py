"""Encoders turn observations into the features that networks read; the critic trains one, the actor reads it."""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rl_runner.envs import Spec


class EncoderFactory(Protocol):
    """What the group `encoder` composes to; it may ask for a `generator` besides."""

    def __call__(self, *, spec: Spec) -> nn.Module:
        """A module from observations `[B, *obs]` to features `[B, n_out]`, with `n_out` as an attribute."""


class Flat(nn.Module):
    """Observations `[B, *obs]` as features `[B, n_out]`: Discrete one-hot, uint8 scaled to [0, 1], the rest flat."""

    def __init__(self, *, spec: Spec):
        super().__init__()
        self.spec = spec
        self.n_out = spec.num_states if spec.num_states is not None else torch.Size(spec.obs_shape).numel()

    def forward(self, obs: Tensor) -> Tensor:
        if self.spec.num_states is not None:
            return F.one_hot(obs, self.spec.num_states).float()
        if self.spec.obs_dtype == torch.uint8:
            obs = obs.float() / 255
        return obs.reshape(*obs.shape[: obs.dim() - len(self.spec.obs_shape)], -1)


class Shared:
    """Another network's encoder, read by an actor that does not train it; no part of the actor or of its copies."""

    def __init__(self, encoder: nn.Module):
        self.encoder, self.n_out = encoder, encoder.n_out

    def __call__(self, obs: Tensor) -> Tensor:
        return self.encoder(obs).detach()

    def __deepcopy__(self, memo: object) -> "Shared":
        return self
