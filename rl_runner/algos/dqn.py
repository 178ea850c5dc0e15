"""DQN (Mnih et al. 2015) and, with `double=true`, Double DQN (van Hasselt et al. 2016)."""

from copy import deepcopy
from functools import partial
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.envs import Spec
from rl_runner.explore import RepeatedActions, epsilon_greedy
from rl_runner.explore import epsilon_schedule as schedule_of
from rl_runner.networks import NetworkFactory, QNetwork
from rl_runner.optim import OptimizerFactory, build, hard_copy, minimize, polyak
from rl_runner.persistence.state import pack, unpack
from rl_runner.ranges import AboveOne, Fraction
from rl_runner.replay import Batch
from rl_runner.seeding import generator


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
        self.q = QNetwork(spec, network, generator(seed, "init")).to(device)
        self.target_q = deepcopy(self.q).requires_grad_(False)
        self.optimizer = build(optimizer, list(self.q.parameters()))

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
        return self.q(obs.to(self.device)).argmax(dim=-1)

    behave = greedy

    @torch.no_grad()
    def critique(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The greedy action, max_a Q(s, a) and no entropy bonus, each `[N]`."""
        q, action = self.q(obs.to(self.device)).cpu().max(dim=-1)
        return action, q, torch.zeros_like(q)

    def exploration(self, step: int) -> dict[str, float]:
        return {"charts/epsilon": self.epsilon(step)}

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Copy the target network if its time has come, then one gradient step; metrics and |δ| `[B]`."""
        if self.tau is None and step // self.target_every > self.copies:
            self.copies = step // self.target_every
            hard_copy(self.target_q, self.q)
        return self.learn(batch)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad():
            next_q = self.target_q(batch.next_obs)
            if self.double:
                next_value = losses.double_value(next_q, self.q(batch.next_obs))
            else:
                next_value = losses.max_value(next_q)
            target = losses.td_target(batch.reward, batch.discount, next_value)

        q = losses.select(self.q(batch.obs), batch.action)
        loss = losses.critic_loss(q, target, batch.weight, self.huber)
        grad_norm = minimize(loss, self.optimizer, self.max_grad_norm)

        if self.tau is not None:
            polyak(self.target_q, self.q, self.tau)

        td_error = target - q.detach()
        return losses.critic_metrics(q, target) | {"grads/q_norm": grad_norm}, td_error.abs()

    def state_dict(self) -> dict[str, Any]:
        return pack(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        unpack(self, state)
