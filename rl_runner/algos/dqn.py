"""DQN (Mnih et al. 2015) and, with `double=true`, Double DQN (van Hasselt et al. 2016)."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
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
from rl_runner.values import Value, critic_report
from rl_runner.wiring import AboveOne, Fraction, wire


class DQN:
    """Q-learning with a network, a replay buffer and a target network.

    `double`: the online network selects the next action, the target network evaluates it.
    `target_update`: `hard` copies every `target_every` environment steps of the whole run, `polyak` moves by `tau`
    at each update. `huber`: smooth L1 instead of the squared error. `max_grad_norm`: clip the gradient's norm.
    ε falls from 1 to `epsilon_min`: `linear` over `epsilon_fraction` of the run, or `multiplicative` by
    `epsilon_decay` per environment step. `epsilon_mu`: a random action is repeated n times, P(n) ∝ n^-μ.
    """

    actions = "discrete"
    observations = "any"
    PARTS = ("q", "target_q", "optimizer", "behaviour", "repeats", "copies")

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
    ):
        assert spec.num_actions is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.num_actions = spec.num_actions
        self.double, self.huber, self.max_grad_norm = double, huber, max_grad_norm
        self.tau = tau if target_update == "polyak" else None
        self.target_every = target_every
        self.copies = 0
        self.epsilon = schedule_of(epsilon_schedule, epsilon_min, epsilon_fraction, epsilon_decay, total_steps)
        self.behaviour = generator(seed, "behaviour")
        self.repeats = RepeatedActions(epsilon_mu, self.behaviour)
        self.value = value()
        init = generator(seed, "init")
        features = wire(encoder, {"spec": spec, "generator": init})
        self.q = QNetwork(spec, network, features, self.value.outputs, init).to(device)
        self.target_q = deepcopy(self.q).requires_grad_(False)
        self.targets = Targets((self.target_q, self.q))
        self.optimizer = build(optimizer, self.q.parameters())

    @torch.no_grad()
    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """ε-greedy actions `[N]`."""

        def greedy(obs: Tensor) -> Tensor:
            return self.behave(obs).cpu()

        extend = partial(self.repeats.extend, first=first)
        return epsilon_greedy(greedy, obs, self.epsilon(step), self.num_actions, self.behaviour, extend)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """argmax_a Q(s, a), `[N]`."""
        return self.greedy(obs).cpu()

    def greedy(self, obs: Tensor) -> Tensor:
        return self.value.mean(self.q(obs.to(self.device))).argmax(dim=-1)

    behave = greedy

    @torch.no_grad()
    def critique(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The greedy action, max_a Q(s, a) and no entropy bonus, each `[N]`."""
        q, action = self.value.mean(self.q(obs.to(self.device))).cpu().max(dim=-1)
        return action, q, torch.zeros_like(q)

    def exploration(self, step: int) -> dict[str, float]:
        return {"charts/epsilon": self.epsilon(step)}

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Copy the target network if its time has come, then one gradient step; metrics and |δ| `[B]`."""
        if self.tau is None and step // self.target_every > self.copies:
            self.copies = step // self.target_every
            self.targets.copy()
        return self.learn(batch)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            next_out = self.target_q(batch.next_obs)
            judge = self.q(batch.next_obs) if self.double else next_out
            next_action = self.value.mean(judge).argmax(dim=-1)
            target = self.value.target(batch.reward, batch.discount, losses.select(next_out, next_action))

        out = losses.select(self.q(batch.obs, training=True), batch.action)
        grad_norm = minimize(self.value.loss(out, target, batch.weight, self.huber), self.optimizer, self.max_grad_norm)

        if self.tau is not None:
            self.targets.polyak(self.tau)

        metrics, td_error = critic_report(self.value, out, target)
        return metrics | {"grads/q_norm": grad_norm}, td_error
