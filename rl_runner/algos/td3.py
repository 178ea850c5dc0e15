"""TD3 (Fujimoto et al. 2018): DDPG with twin critics, target policy smoothing and delayed policy updates."""

from copy import deepcopy
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.envs import Spec
from rl_runner.explore import GaussianNoise
from rl_runner.networks import Critics, DeterministicActor, NetworkFactory
from rl_runner.optim import OptimizerFactory, build, minimize, polyak
from rl_runner.persistence.state import pack, unpack
from rl_runner.ranges import Fraction
from rl_runner.replay import Batch
from rl_runner.seeding import generator


class TD3:
    """Twin delayed deep deterministic policy gradient.

    `noise_scale`: standard deviation of the behaviour's Gaussian noise. `policy_noise`, `noise_clip`: the noise on the
    target policy's action and its bound. `policy_delay`: actor and all targets move every so many updates.
    `actor_objective`: the actor climbs the first critic (`q1`) or the smaller of the two (`min`).
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
        "smoothing",
        "updates",
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
        noise_scale: NonNegativeFloat,
        policy_noise: NonNegativeFloat,
        noise_clip: NonNegativeFloat,
        policy_delay: PositiveInt,
        actor_objective: Literal["q1", "min"],
        actor_lr: PositiveFloat | None,
        max_grad_norm: PositiveFloat | None,
    ):
        assert spec.action_dim is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.tau, self.max_grad_norm = tau, max_grad_norm
        self.policy_noise, self.noise_clip = policy_noise, noise_clip
        self.policy_delay, self.actor_objective = policy_delay, actor_objective
        self.updates = 0
        self.action_dim = spec.action_dim
        self.behaviour = generator(seed, "behaviour")
        self.smoothing = generator(seed, "smoothing", device)
        self.noise = GaussianNoise(spec.action_dim, noise_scale, self.behaviour)
        init = generator(seed, "init")
        self.actor = DeterministicActor(spec, network, init).to(device)
        self.critics = Critics(spec, network, size=2, generator=init).to(device)
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
        """μ(s) `[N, act]`, the critics' mean Q(s, μ(s)) `[N]` and no entropy bonus."""
        obs = obs.to(self.device)
        action = self.actor(obs)
        q = self.critics(obs, action).mean(dim=0).cpu()
        return action.cpu(), q, torch.zeros_like(q)

    def exploration(self, step: int) -> dict[str, float]:
        return {"policy/noise_scale": self.noise.scale}

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One critic step, and every `policy_delay`-th time the actor and all targets; metrics and |δ| `[B]`."""
        self.updates += 1
        noise = torch.randn(self.batch_size, self.action_dim, generator=self.smoothing, device=self.device)
        return self.learn(batch, noise, self.updates % self.policy_delay == 0)

    def learn(self, batch: Batch, noise: Tensor, with_actor: bool) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            next_action = self.target_actor(batch.next_obs)
            next_action = losses.smoothed_action(next_action, noise, self.policy_noise, self.noise_clip)
            next_value = losses.clipped_double_value(self.target_critics(batch.next_obs, next_action))
            target = losses.td_target(batch.reward, batch.discount, next_value)

        q = self.critics(batch.obs, batch.action)
        loss = losses.critic_loss(q, target, batch.weight)
        critic_norm = minimize(loss, self.critic_optimizer, self.max_grad_norm)
        metrics = losses.critic_metrics(q, target) | {"grads/critic_norm": critic_norm}

        if with_actor:
            action = self.actor(batch.obs)
            if self.actor_objective == "q1":
                policy_q = self.critics.first(batch.obs, action)
            else:
                policy_q = losses.clipped_double_value(self.critics(batch.obs, action))
            actor_loss = losses.deterministic_actor_loss(policy_q)
            actor_norm = minimize(actor_loss, self.actor_optimizer, self.max_grad_norm)
            metrics |= {"losses/actor_loss": actor_loss.detach(), "grads/actor_norm": actor_norm}

            polyak(self.target_critics, self.critics, self.tau)
            polyak(self.target_actor, self.actor, self.tau)

        return metrics, (target - q.detach()).abs().mean(dim=0)

    def state_dict(self) -> dict[str, Any]:
        return pack(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        unpack(self, state)
