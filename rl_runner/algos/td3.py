"""TD3 (Fujimoto et al. 2018): DDPG with twin critics, target policy smoothing and delayed policy updates."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.encoders import EncoderFactory, Shared
from rl_runner.envs import Spec
from rl_runner.explore import DeterministicActor, GaussianNoise, NoisyPolicy
from rl_runner.networks import Critics, NetworkFactory
from rl_runner.optim import OptimizerFactory, Targets, build, minimize
from rl_runner.replay import Batch
from rl_runner.seeding import generator
from rl_runner.values import Value, critic_report
from rl_runner.wiring import Fraction, wire


class TD3(NoisyPolicy):
    """Twin delayed deep deterministic policy gradient.

    `noise_scale`: standard deviation of the behaviour's Gaussian noise. `policy_noise`, `noise_clip`: the noise on the
    target policy's action and its bound. `policy_delay`: actor and all targets move every so many updates.
    `actor_objective`: the actor climbs the first critic (`q1`) or the smaller of the two (`min`).
    `max_grad_norm`: clip both gradients' norms. `reset_at`: environment steps before whose updates networks
    and optimizers begin anew.
    """

    actions = "continuous"
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
        encoder: EncoderFactory,
        value: Callable[[], Value],
        actor_network: NetworkFactory,
        critic_network: NetworkFactory,
        actor_optimizer: OptimizerFactory,
        critic_optimizer: OptimizerFactory,
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
        max_grad_norm: PositiveFloat | None,
        reset_at: Sequence[PositiveInt] = (),
    ):
        assert spec.action_dim is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.tau, self.max_grad_norm = tau, max_grad_norm
        self.policy_noise, self.noise_clip = policy_noise, noise_clip
        self.policy_delay, self.actor_objective = policy_delay, actor_objective
        self.updates, self.reset_at = 0, reset_at
        self.action_dim = spec.action_dim
        self.behaviour = generator(seed, "behaviour")
        self.smoothing = generator(seed, "smoothing", device)
        self.noise = GaussianNoise(spec.action_dim, noise_scale, self.behaviour)
        self.value = value()
        init = generator(seed, "init")
        features = wire(encoder, {"spec": spec, "generator": init})
        self.actor = DeterministicActor(spec, actor_network, Shared(features), init).to(device)
        self.critics = Critics(spec, critic_network, features, self.value.outputs, 2, init).to(device)
        self.target_actor = deepcopy(self.actor).requires_grad_(False)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.targets = Targets((self.target_critics, self.critics), (self.target_actor, self.actor))
        self.actor_optimizer = build(actor_optimizer, self.actor.parameters())
        self.critic_optimizer = build(critic_optimizer, self.critics.parameters())

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One critic step, and every `policy_delay`-th time the actor and all targets; metrics and |δ| `[B]`."""
        self.updates += 1
        noise = torch.randn(self.batch_size, self.action_dim, generator=self.smoothing, device=self.device)
        return self.learn(batch, noise, self.updates % self.policy_delay == 0)

    def learn(self, batch: Batch, noise: Tensor, with_actor: bool) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            next_action = self.target_actor(batch.next_obs)
            next_action = losses.smoothed_action(next_action, noise, self.policy_noise, self.noise_clip)
            next_out = self.value.pessimistic(self.target_critics(batch.next_obs, next_action))
            target = self.value.target(batch.reward, batch.discount, next_out)

        out = self.critics(batch.obs, batch.action, training=True)
        critic_norm = minimize(self.value.loss(out, target, batch.weight), self.critic_optimizer, self.max_grad_norm)
        metrics, td_error = critic_report(self.value, out, target)
        metrics["grads/critic_norm"] = critic_norm

        if with_actor:
            action = self.actor(batch.obs, training=True)
            if self.actor_objective == "q1":
                policy_q = self.value.mean(self.critics.first(batch.obs, action))
            else:
                policy_q = losses.clipped_double_value(self.value.mean(self.critics(batch.obs, action)))
            actor_loss = losses.deterministic_actor_loss(policy_q)
            actor_norm = minimize(actor_loss, self.actor_optimizer, self.max_grad_norm)
            metrics |= {"losses/actor_loss": actor_loss.detach(), "grads/actor_norm": actor_norm}

            self.targets.polyak(self.tau)

        return metrics, td_error.mean(dim=0)
