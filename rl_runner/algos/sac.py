"""SAC (Haarnoja et al. 2018, 2018b): maximum-entropy actor-critic with a learned or a fixed temperature."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from pydantic import FiniteFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.encoders import EncoderFactory, Shared
from rl_runner.envs import Spec
from rl_runner.explore import RepeatedActions
from rl_runner.networks import Critics, Net, NetworkFactory
from rl_runner.optim import OptimizerFactory, Targets, build, minimize
from rl_runner.replay import Batch
from rl_runner.seeding import generator
from rl_runner.values import Value, critic_report
from rl_runner.wiring import AboveOne, Fraction, wire

Drawn = Tensor | None  # by options alone


class SAC:
    """Soft actor-critic with a squashed Gaussian policy and an ensemble of critics.

    Where actions are discrete, `algo=sac` is `discrete_sac.DiscreteSAC`.
    `alpha`: `auto` learns the temperature, starting at `initial_alpha`, so that the policy's entropy meets
    `target_entropy` (null: `target_entropy_per_dim` for each dimension of actions); a number fixes it. `log_std_min`,
    `log_std_max`: bounds of log σ. `max_grad_norm`: clip actor and critic gradients.
    `critics`: how many. The target is the lowest of `target_of` of them, drawn anew for each update (null: of all), or
    their mean (`target_reduce`); the actor climbs the lowest of all, their mean or the first (`actor_reduce`).
    `target_update`: target critics follow by `tau`, are copied every `target_every` environment steps, or there are
    none. `policy_delay`: actor and temperature learn at every so many updates.
    `noise_mu`: the noise of exploration is held for n steps, P(n) ∝ n^-μ, n ≤ 16. `reset_at`: environment steps before
    whose updates networks, temperature and optimizers begin anew.
    """

    actions = "continuous"
    stochastic = True
    PARTS: tuple[str, ...] = (
        "actor",
        "critics",
        "target_critics",
        "log_alpha",
        "actor_optimizer",
        "critic_optimizer",
        "alpha_optimizer",
        "behaviour",
        "sampling",
        "updates",
        "copies",
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
        target_of: PositiveInt | None = None,
        target_reduce: Literal["min", "mean"] = "min",
        actor_reduce: Literal["min", "mean", "first"] = "min",
        target_update: Literal["polyak", "hard", "none"] = "polyak",
        target_every: PositiveInt = 1_000,
        policy_delay: PositiveInt = 1,
        target_entropy_per_dim: FiniteFloat = -1.0,
        noise_mu: AboveOne | None = None,
        reset_at: Sequence[PositiveInt] = (),
    ):
        assert spec.action_dim is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.max_grad_norm, self.actor_reduce = max_grad_norm, actor_reduce
        self.policy_delay, self.updates, self.reset_at = policy_delay, 0, reset_at
        self.action_dim = spec.action_dim
        self.behaviour = generator(seed, "behaviour")
        self.repeats = RepeatedActions(noise_mu, self.behaviour, longest=16)
        self.sampling = generator(seed, "sampling", device)
        self.value = value()
        self.reduced = self.value.pessimistic if target_reduce == "min" else self.value.average
        self.num_critics, self.target_of = critics, target_of
        init = generator(seed, "init")
        features = wire(encoder, {"spec": spec, "generator": init})
        self.actor = GaussianActor(spec, actor_network, Shared(features), init, (log_std_min, log_std_max)).to(device)
        self.critics = Critics(spec, critic_network, features, self.value.outputs, critics, init).to(device)
        self.has_targets, self.target_every = target_update != "none", target_every
        self.tau, self.copies = tau if target_update == "polyak" else None, 0
        self.target_critics = deepcopy(self.critics).requires_grad_(False) if self.has_targets else self.critics
        if not self.has_targets:
            self.PARTS = tuple(name for name in self.PARTS if name != "target_critics")
        if noise_mu:  # only then is there something to save, and checkpoints of before go on
            self.PARTS = (*self.PARTS, "repeats")
        own_statistics = self.critics.normalises_batches  # of targets that pass over whole batches themselves
        self.targets = Targets((self.target_critics, self.critics), statistics=not own_statistics)
        self.actor_optimizer = build(actor_optimizer, self.actor.parameters())
        self.critic_optimizer = build(critic_optimizer, self.critics.parameters())
        self.learn_alpha = alpha == "auto"
        self.log_alpha = torch.tensor(float(initial_alpha if alpha == "auto" else alpha), device=device).log()
        self.log_alpha.requires_grad_(self.learn_alpha)
        undecayed = {"params": [self.log_alpha], "weight_decay": 0.0}  # decay would pull α towards 1
        self.alpha_optimizer = build(alpha_optimizer, [undecayed])
        self.target_entropy = target_entropy_per_dim * spec.action_dim if target_entropy is None else target_entropy

    @torch.no_grad()
    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """a ~ π(·|s), `[N, act]`."""
        noise = torch.randn(len(obs), self.action_dim, generator=self.behaviour)
        return self.behave(obs, self.repeats.hold(noise, first)).cpu()

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
        """One step of critics and targets, at times of actor and temperature; metrics and |δ| `[B]`."""
        if self.has_targets and self.tau is None and step // self.target_every > self.copies:
            self.copies = step // self.target_every
            self.targets.copy()
        self.updates += 1
        draw: Any = {"generator": self.sampling, "device": self.device}
        next_noise, noise = torch.randn(2, self.batch_size, self.action_dim, **draw)
        subset = torch.rand(self.num_critics, **draw).argsort()[: self.target_of] if self.target_of else None
        seeds = torch.randint(2**32, (3,), **draw) if self.critics.drops else None
        return self.learn(batch, next_noise, noise, self.updates % self.policy_delay == 0, subset, seeds)

    def estimates(self, batch: Batch, next_action: Tensor, seed: Drawn, next_seed: Drawn) -> tuple[Tensor, Tensor]:
        """Q(s, a), and what the targets say of (s', a'), without gradient; `[E, B, K]` each.

        With batch normalisation each network passes over both pairs at once, so that both have the same statistics.
        """
        if not self.critics.normalises_batches:
            with torch.no_grad():
                next_out = self.target_critics(batch.next_obs, next_action, seed=next_seed)
            return self.critics(batch.obs, batch.action, training=True, seed=seed), next_out
        pairs = batch.obs, batch.action, batch.next_obs, next_action
        out, next_out = self.critics.joint(*pairs, seed)
        return out, self.target_critics.joint(*pairs, next_seed)[1] if self.has_targets else next_out

    def learn(
        self, batch: Batch, next_noise: Tensor, noise: Tensor, with_actor: bool, subset: Drawn, seeds: Drawn
    ) -> tuple[dict[str, Tensor], Tensor]:
        alpha = self.log_alpha.detach().exp()
        seed, next_seed, policy_seed = (None, None, None) if seeds is None else seeds

        with torch.no_grad():
            next_action, next_log_prob = self.sample(batch.next_obs, next_noise)
        out, next_out = self.estimates(batch, next_action, seed, next_seed)
        with torch.no_grad():
            next_out = self.reduced(next_out if subset is None else next_out[subset])
            target = self.value.target(batch.reward, batch.discount, next_out, bonus=-alpha * next_log_prob)
        critic_norm = minimize(self.value.loss(out, target, batch.weight), self.critic_optimizer, self.max_grad_norm)

        metrics, td_error = critic_report(self.value, out, target)
        metrics |= {"policy/alpha": alpha, "grads/critic_norm": critic_norm}

        if with_actor:
            action, log_prob = self.sample(batch.obs, noise, training=True)
            policy_q = self.value.mean(self.critics(batch.obs, action, seed=policy_seed))
            actor_loss = losses.soft_actor_loss(policy_q, log_prob, alpha, self.actor_reduce)
            actor_norm = minimize(actor_loss, self.actor_optimizer, self.max_grad_norm)
            metrics |= {"losses/actor_loss": actor_loss.detach(), "grads/actor_norm": actor_norm}
            metrics["policy/entropy"] = -log_prob.detach().mean()

            if self.learn_alpha:
                alpha_loss = losses.alpha_loss(self.log_alpha, log_prob.detach(), self.target_entropy)
                minimize(alpha_loss, self.alpha_optimizer)
                metrics["losses/alpha_loss"] = alpha_loss.detach()

        if self.tau is not None:
            self.targets.polyak(self.tau)

        return metrics, td_error.mean(dim=0)


class GaussianActor(Net):
    """Mean and log standard deviation before squashing: `[B, *obs]` to two `[B, act]`; log σ clamped to `bounds`."""

    def __init__(
        self, spec: Spec, network: NetworkFactory, encoder: Any, generator: torch.Generator, bounds: tuple[float, float]
    ):
        assert spec.action_dim is not None
        super().__init__(spec, network, encoder, generator, 2 * spec.action_dim)
        self.bounds = bounds

    def forward(self, obs: Tensor, training: bool = False) -> tuple[Tensor, Tensor]:
        mean, log_std = self.output(obs, training=training).chunk(2, dim=-1)
        return mean, log_std.clamp(*self.bounds)
