"""DQN (Mnih et al. 2015), Double DQN (van Hasselt et al. 2016), Munchausen DQN (Vieillard et al. 2020)."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Literal

import torch
from pydantic import NonPositiveFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.encoders import EncoderFactory
from rl_runner.envs import Spec
from rl_runner.explore import RepeatedActions, epsilon_greedy
from rl_runner.explore import epsilon_schedule as schedule_of
from rl_runner.networks import NetworkFactory, QNetwork
from rl_runner.optim import OptimizerFactory, Targets, build, minimize
from rl_runner.replay import Batch
from rl_runner.seeding import generator
from rl_runner.values import Value, critic_report, soft_target
from rl_runner.wiring import AboveOne, Fraction, wire


class DQN:
    """Q-learning with a network, a replay buffer and a target network.

    `double`: the online network selects the next action, the target network evaluates it.
    `target_update`: `hard` copies every `target_every` environment steps of the whole run, `polyak` moves by `tau`
    at each update. `huber`: smooth L1 instead of the squared error. `max_grad_norm`: clip the gradient's norm.
    ε falls from 1 to `epsilon_min`: `linear` over `epsilon_fraction` of the run, or `multiplicative` by
    `epsilon_decay` per environment step. `epsilon_mu`: a random action is repeated n times, P(n) ∝ n^-μ.
    `munchausen`: such a share of τ log π(a|s), but not below `log_pi_min`, is added to the reward, and the target takes
    the soft value of π = softmax(Q⁻/τ) for the maximum; τ is `temperature` (null: neither; paper 0.9).
    `reset_at`: environment steps before whose updates networks and optimizers begin anew.
    """

    actions = "discrete"
    noisy_layers = True  # are given noise to learn and to explore with
    PARTS: tuple[str, ...] = ("q", "target_q", "optimizer", "behaviour", "repeats", "copies")

    def __init__(
        self,
        *,
        spec: Spec,
        encoder: EncoderFactory,
        value: Callable[[], Value],
        network: NetworkFactory,
        optimizer: OptimizerFactory,
        seed: int,
        device: torch.device | str,
        total_steps: int,
        gamma: Fraction,
        batch_size: PositiveInt,
        double: bool,
        target_update: Literal["hard", "polyak"],
        target_every: PositiveInt,
        tau: Fraction,
        huber: bool,
        max_grad_norm: PositiveFloat | None,
        epsilon_schedule: Literal["linear", "multiplicative"],
        epsilon_min: Fraction,
        epsilon_fraction: Fraction,
        epsilon_decay: Fraction,
        epsilon_mu: AboveOne | None,
        munchausen: Fraction | None = None,
        temperature: PositiveFloat = 0.03,
        log_pi_min: NonPositiveFloat = -1.0,
        reset_at: Sequence[PositiveInt] = (),
    ):
        assert spec.num_actions is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.num_actions = spec.num_actions
        self.double, self.huber, self.max_grad_norm = double, huber, max_grad_norm
        self.tau = tau if target_update == "polyak" else None
        self.target_every, self.reset_at = target_every, reset_at
        self.copies = 0
        self.munchausen, self.temperature, self.log_pi_min = munchausen, temperature, log_pi_min
        self.epsilon = schedule_of(epsilon_schedule, epsilon_min, epsilon_fraction, epsilon_decay, total_steps)
        self.behaviour = generator(seed, "behaviour")
        self.sampling = generator(seed, "sampling", device)
        self.repeats = RepeatedActions(epsilon_mu, self.behaviour)
        self.value = value()
        init = generator(seed, "init")
        features = wire(encoder, {"spec": spec, "generator": init})
        self.q = QNetwork(spec, network, features, self.value.outputs, init).to(device)
        self.target_q = deepcopy(self.q).requires_grad_(False)
        self.targets = Targets((self.target_q, self.q))
        self.optimizer = build(optimizer, self.q.parameters())
        if self.q.n_noise:  # only then is it drawn from, and checkpoints of before go on
            self.PARTS = (*self.PARTS, "sampling")

    @torch.no_grad()
    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """ε-greedy actions `[N]`."""

        def greedy(obs: Tensor) -> Tensor:
            return self.behave(obs, *self.noise(1, self.behaviour)).cpu()

        extend = partial(self.repeats.extend, first=first)
        return epsilon_greedy(greedy, obs, self.epsilon(step), self.num_actions, self.behaviour, extend)

    def noise(self, draws: int, stream: torch.Generator) -> tuple[Tensor, ...]:
        """So many draws of noise for the layers of the network, each for a whole batch; none if it is not noisy."""
        size = self.q.n_noise
        return torch.randn(draws, size, generator=stream, device=stream.device).unbind() if size else ()

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """argmax_a Q(s, a), `[N]`."""
        return self.greedy(obs).cpu()

    def greedy(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        noise = noise if noise is None else noise.to(self.device)
        return self.value.mean(self.q(obs.to(self.device), noise=noise)).argmax(dim=-1)

    behave = greedy

    @torch.no_grad()
    def critique(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The greedy action, max_a Q(s, a) and no entropy bonus, each `[N]`."""
        q, action = self.value.mean(self.q(obs.to(self.device))).cpu().max(dim=-1)
        return action, q, torch.zeros_like(q)

    def exploration(self, step: int) -> dict[str, float]:
        return {"charts/epsilon": self.epsilon(step)}

    def remarks(self) -> list[str]:
        """What the header says besides."""
        by_chance = "; ε is 0" if self.epsilon(1) == 0 else ", and by ε"
        return [f"explores by noise in the network's layers{by_chance}"] if self.q.n_noise else []

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Copy the target network if its time has come, then one gradient step; metrics and |δ| `[B]`."""
        if self.tau is None and step // self.target_every > self.copies:
            self.copies = step // self.target_every
            self.targets.copy()
        return self.learn(batch, *self.noise(3, self.sampling))

    def learn(
        self,
        batch: Batch,
        noise: Tensor | None = None,
        judge_noise: Tensor | None = None,
        target_noise: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            next_out = self.target_q(batch.next_obs, noise=target_noise)
            if self.munchausen is None:
                judge = self.q(batch.next_obs, noise=judge_noise) if self.double else next_out
                next_action = self.value.mean(judge).argmax(dim=-1)
                target = self.value.target(batch.reward, batch.discount, losses.select(next_out, next_action))
            else:
                tau = self.temperature
                both = self.value.mean(torch.stack([self.target_q(batch.obs, noise=target_noise), next_out]))
                log_prob, next_log_prob = (both / tau).log_softmax(dim=-1)
                bonus = losses.munchausen_bonus(log_prob, batch.action, tau, self.log_pi_min)
                reward, next_out = batch.reward + self.munchausen * bonus, next_out.movedim(-2, -3)
                target = soft_target(self.value, reward, batch.discount, next_out, next_log_prob, tau)

        out = losses.select(self.q(batch.obs, training=True, noise=noise), batch.action)
        grad_norm = minimize(self.value.loss(out, target, batch.weight, self.huber), self.optimizer, self.max_grad_norm)

        if self.tau is not None:
            self.targets.polyak(self.tau)

        metrics, td_error = critic_report(self.value, out, target)
        return metrics | {"grads/q_norm": grad_norm}, td_error
