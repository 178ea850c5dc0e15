"""DDPG (Lillicrap et al. 2016): a deterministic actor that climbs its critic."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.encoders import EncoderFactory, Shared
from rl_runner.envs import Spec
from rl_runner.explore import DeterministicActor, NoisyPolicy, action_noise
from rl_runner.networks import Critics, NetworkFactory
from rl_runner.optim import OptimizerFactory, Targets, build, minimize
from rl_runner.replay import Batch
from rl_runner.seeding import generator
from rl_runner.values import Value, critic_report
from rl_runner.wiring import Fraction, wire


class DDPG(NoisyPolicy):
    """Deterministic policy gradient with target networks for actor and critic.

    `noise`: `gaussian` or `ou` (Ornstein-Uhlenbeck); `noise_scale`: standard deviation of what is added in each step to
    actions in [-1, 1], or to the Ornstein-Uhlenbeck process, which itself then spreads 1.9 times as wide.
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
        "noise",
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
        noise: Literal["gaussian", "ou"],
        noise_scale: NonNegativeFloat,
        max_grad_norm: PositiveFloat | None,
        reset_at: Sequence[PositiveInt] = (),
    ):
        assert spec.action_dim is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.tau, self.max_grad_norm, self.reset_at = tau, max_grad_norm, reset_at
        self.behaviour = generator(seed, "behaviour")
        self.noise = action_noise(noise, spec.action_dim, noise_scale, self.behaviour)
        self.value = value()
        init = generator(seed, "init")
        features = wire(encoder, {"spec": spec, "generator": init})
        self.actor = DeterministicActor(spec, actor_network, Shared(features), init).to(device)
        self.critics = Critics(spec, critic_network, features, self.value.outputs, 1, init).to(device)
        self.target_actor = deepcopy(self.actor).requires_grad_(False)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.targets = Targets((self.target_critics, self.critics), (self.target_actor, self.actor))
        self.actor_optimizer = build(actor_optimizer, self.actor.parameters())
        self.critic_optimizer = build(critic_optimizer, self.critics.parameters())

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One step of critic, actor and targets; metrics and |δ| `[B]`."""
        return self.learn(batch)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            next_action = self.target_actor(batch.next_obs)
            next_out = self.value.pessimistic(self.target_critics(batch.next_obs, next_action))
            target = self.value.target(batch.reward, batch.discount, next_out)

        out = self.critics(batch.obs, batch.action, training=True)
        critic_norm = minimize(self.value.loss(out, target, batch.weight), self.critic_optimizer, self.max_grad_norm)

        action = self.actor(batch.obs, training=True)
        actor_loss = losses.deterministic_actor_loss(self.value.mean(self.critics(batch.obs, action)))
        actor_norm = minimize(actor_loss, self.actor_optimizer, self.max_grad_norm)

        self.targets.polyak(self.tau)

        metrics, td_error = critic_report(self.value, out, target)
        metrics |= {
            "losses/actor_loss": actor_loss.detach(),
            "grads/critic_norm": critic_norm,
            "grads/actor_norm": actor_norm,
        }
        return metrics, td_error.mean(dim=0)
