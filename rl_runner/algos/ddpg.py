"""DDPG (Lillicrap et al. 2016): a deterministic actor that climbs its critic."""

from copy import deepcopy
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.envs import Spec
from rl_runner.explore import action_noise
from rl_runner.networks import Critics, DeterministicActor, NetworkFactory
from rl_runner.optim import OptimizerFactory, build, minimize, polyak
from rl_runner.persistence.state import pack, unpack
from rl_runner.ranges import Fraction
from rl_runner.replay import Batch
from rl_runner.seeding import generator


class DDPG:
    """Deterministic policy gradient with target networks for actor and critic.

    `noise`: `gaussian` or `ou` (Ornstein-Uhlenbeck); `noise_scale`: standard deviation of what is added in each step to
    actions in [-1, 1], or to the Ornstein-Uhlenbeck process, which itself then spreads 1.9 times as wide.
    `actor_lr`: the actor's learning rate, null for the optimizer's. `max_grad_norm`: clip both gradients' norms.
    """

    actions = "continuous"
    observations = "any"
    PARTS = (
        "actor",
        "critics",
        "target_actor",
        "target_critics",
        "actor_optimizer",
        "critic_optimizer",
        "behaviour",
        "noise",
    )

    def __init__(
        self,
        *,
        spec: Spec,
        network: NetworkFactory,
        optimizer: OptimizerFactory,
        seed: int,
        device: torch.device | str,
        gamma: Fraction,
        tau: Fraction,
        batch_size: PositiveInt,
        noise: Literal["gaussian", "ou"],
        noise_scale: NonNegativeFloat,
        actor_lr: PositiveFloat | None,
        max_grad_norm: PositiveFloat | None,
    ):
        assert spec.action_dim is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.tau, self.max_grad_norm = tau, max_grad_norm
        self.behaviour = generator(seed, "behaviour")
        self.noise = action_noise(noise, spec.action_dim, noise_scale, self.behaviour)
        init = generator(seed, "init")
        self.actor = DeterministicActor(spec, network, init).to(device)
        self.critics = Critics(spec, network, size=1, generator=init).to(device)
        self.target_actor = deepcopy(self.actor).requires_grad_(False)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.actor_optimizer = build(optimizer, list(self.actor.parameters()), actor_lr)
        self.critic_optimizer = build(optimizer, list(self.critics.parameters()))

    @torch.no_grad()
    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """clip(μ(s) + noise), `[N, act]`."""
        return self.behave(obs, self.noise(first)).cpu()

    def behave(self, obs: Tensor, noise: Tensor) -> Tensor:
        return (self.actor(obs.to(self.device)) + noise.to(self.device)).clamp(-1, 1)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """μ(s), `[N, act]`."""
        return self.actor(obs.to(self.device)).cpu()

    @torch.no_grad()
    def critique(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """μ(s) `[N, act]`, Q(s, μ(s)) `[N]` and no entropy bonus."""
        obs = obs.to(self.device)
        action = self.actor(obs)
        q = self.critics(obs, action).mean(dim=0).cpu()
        return action.cpu(), q, torch.zeros_like(q)

    def exploration(self, step: int) -> dict[str, float]:
        return {"policy/noise_scale": self.noise.scale}

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One step of critic, actor and targets; metrics and |δ| `[B]`."""
        return self.learn(batch)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            next_q = self.target_critics(batch.next_obs, self.target_actor(batch.next_obs))
            target = losses.td_target(batch.reward, batch.discount, next_q[0])

        q = self.critics(batch.obs, batch.action)
        loss = losses.critic_loss(q, target, batch.weight)
        critic_norm = minimize(loss, self.critic_optimizer, self.max_grad_norm)

        actor_loss = losses.deterministic_actor_loss(self.critics(batch.obs, self.actor(batch.obs)))
        actor_norm = minimize(actor_loss, self.actor_optimizer, self.max_grad_norm)

        polyak(self.target_critics, self.critics, self.tau)
        polyak(self.target_actor, self.actor, self.tau)

        metrics = losses.critic_metrics(q, target) | {
            "losses/actor_loss": actor_loss.detach(),
            "grads/critic_norm": critic_norm,
            "grads/actor_norm": actor_norm,
        }
        return metrics, (target - q.detach()).abs().mean(dim=0)

    def state_dict(self) -> dict[str, Any]:
        return pack(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        unpack(self, state)
