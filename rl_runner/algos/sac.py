"""SAC (Haarnoja et al. 2018, 2018b): maximum-entropy actor-critic with a learned or a fixed temperature."""

from collections.abc import Callable
from copy import deepcopy
from typing import Literal

import torch
from pydantic import FiniteFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.encoders import EncoderFactory, Shared
from rl_runner.envs import Spec
from rl_runner.networks import Critics, GaussianActor, NetworkFactory
from rl_runner.optim import OptimizerFactory, Targets, build, minimize
from rl_runner.replay import Batch
from rl_runner.seeding import generator
from rl_runner.values import Value, critic_report
from rl_runner.wiring import Fraction, wire


class SAC:
    """Soft actor-critic with a squashed Gaussian policy and an ensemble of critics.

    Where actions are discrete, `algo=sac` is `discrete_sac.DiscreteSAC`.
    `alpha`: `auto` learns the temperature, starting at `initial_alpha`, so that the policy's entropy meets
    `target_entropy` (null: -dim(A)); a number fixes it. `log_std_min`, `log_std_max`: bounds of log σ.
    `max_grad_norm`: clip actor and critic gradients. `critics`: how many, and `actor_reduce`: whether the actor climbs
    the lowest of them or their mean.
    """

    actions = "continuous"
    observations = "any"
    stochastic = True
    PARTS = (
        "actor",
        "critics",
        "target_critics",
        "log_alpha",
        "actor_optimizer",
        "critic_optimizer",
        "alpha_optimizer",
        "behaviour",
        "sampling",
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
        alpha_optimizer: OptimizerFactory,
        seed: int,
        device: torch.device | str,
        gamma: Fraction,
        tau: Fraction,
        batch_size: PositiveInt,
        alpha: Literal["auto"] | PositiveFloat,
        initial_alpha: PositiveFloat,
        target_entropy: FiniteFloat | None,
        log_std_min: FiniteFloat,
        log_std_max: FiniteFloat,
        max_grad_norm: PositiveFloat | None,
        critics: PositiveInt = 2,
        actor_reduce: Literal["min", "mean"] = "min",
    ):
        assert spec.action_dim is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.tau, self.max_grad_norm, self.actor_reduce = tau, max_grad_norm, actor_reduce
        self.action_dim = spec.action_dim
        self.behaviour = generator(seed, "behaviour")
        self.sampling = generator(seed, "sampling", device)
        self.value = value()
        init = generator(seed, "init")
        features = wire(encoder, {"spec": spec, "generator": init})
        self.actor = GaussianActor(spec, actor_network, Shared(features), init, (log_std_min, log_std_max)).to(device)
        self.critics = Critics(spec, critic_network, features, self.value.outputs, critics, init).to(device)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.targets = Targets((self.target_critics, self.critics))
        self.actor_optimizer = build(actor_optimizer, self.actor.parameters())
        self.critic_optimizer = build(critic_optimizer, self.critics.parameters())
        self.learn_alpha = alpha == "auto"
        self.log_alpha = torch.tensor(float(initial_alpha if alpha == "auto" else alpha), device=device).log()
        self.log_alpha.requires_grad_(self.learn_alpha)
        undecayed = {"params": [self.log_alpha], "weight_decay": 0.0}  # decay would pull α towards 1
        self.alpha_optimizer = build(alpha_optimizer, [undecayed])
        self.target_entropy = float(-spec.action_dim if target_entropy is None else target_entropy)

    @torch.no_grad()
    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """a ~ π(·|s), `[N, act]`."""
        noise = torch.randn(len(obs), self.action_dim, generator=self.behaviour)
        return self.behave(obs, noise).cpu()

    def behave(self, obs: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = self.actor(obs.to(self.device))
        return torch.tanh(mean + log_std.exp() * noise.to(self.device))

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """tanh(μ(s)), `[N, act]`."""
        return torch.tanh(self.actor(obs.to(self.device))[0]).cpu()

    @torch.no_grad()
    def critique(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """a ~ π(·|s) `[N, act]`, the critics' mean Q(s, a) `[N]` and the entropy bonus -α log π(a|s) `[N]`."""
        obs = obs.to(self.device)
        noise = torch.randn(len(obs), self.action_dim, generator=generator).to(self.device)
        action, log_prob = self.sample(obs, noise)
        q = self.value.mean(self.critics(obs, action)).mean(dim=0)
        return action.cpu(), q.cpu(), (-self.log_alpha.exp() * log_prob).cpu()

    def sample(self, obs: Tensor, noise: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        """a = tanh(μ(s) + σ(s) noise) `[B, act]` and log π(a|s) `[B]`."""
        mean, log_std = self.actor(obs, training=training)
        return losses.squashed_gaussian(mean, log_std, noise)

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One step of critics, actor, temperature and targets; metrics and |δ| `[B]`."""
        shape = (2, self.batch_size, self.action_dim)
        next_noise, noise = torch.randn(shape, generator=self.sampling, device=self.device)
        return self.learn(batch, next_noise, noise)

    def learn(self, batch: Batch, next_noise: Tensor, noise: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        alpha = self.log_alpha.detach().exp()

        with torch.no_grad():
            next_action, next_log_prob = self.sample(batch.next_obs, next_noise)
            next_out = self.value.pessimistic(self.target_critics(batch.next_obs, next_action))
            target = self.value.target(batch.reward, batch.discount, next_out, bonus=-alpha * next_log_prob)

        out = self.critics(batch.obs, batch.action, training=True)
        critic_norm = minimize(self.value.loss(out, target, batch.weight), self.critic_optimizer, self.max_grad_norm)

        action, log_prob = self.sample(batch.obs, noise, training=True)
        policy_q = self.value.mean(self.critics(batch.obs, action))
        actor_loss = losses.soft_actor_loss(policy_q, log_prob, alpha, self.actor_reduce)
        actor_norm = minimize(actor_loss, self.actor_optimizer, self.max_grad_norm)

        metrics, td_error = critic_report(self.value, out, target)
        metrics |= {
            "losses/actor_loss": actor_loss.detach(),
            "policy/entropy": -log_prob.detach().mean(),
            "policy/alpha": alpha,
            "grads/critic_norm": critic_norm,
            "grads/actor_norm": actor_norm,
        }

        if self.learn_alpha:
            alpha_loss = losses.alpha_loss(self.log_alpha, log_prob.detach(), self.target_entropy)
            minimize(alpha_loss, self.alpha_optimizer)
            metrics["losses/alpha_loss"] = alpha_loss.detach()

        self.targets.polyak(self.tau)

        return metrics, td_error.mean(dim=0)
