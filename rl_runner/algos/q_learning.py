"""Tabular Q-learning (Watkins 1989; Sutton & Barto 2018, section 6.5)."""

from typing import Literal

import torch
from pydantic import FiniteFloat, NonNegativeFloat, PositiveFloat
from torch import Tensor

from rl_runner import losses
from rl_runner.envs import Spec
from rl_runner.explore import epsilon_greedy
from rl_runner.explore import epsilon_schedule as schedule_of
from rl_runner.replay import Batch
from rl_runner.seeding import generator
from rl_runner.wiring import Fraction


class QLearning:
    """Q-learning on a table, from the transitions just seen (`replay=last`).

    The step size is `learning_rate` · N(s,a)^-`learning_rate_decay` with N the pair's visit count (0: constant).
    ε falls from 1 to `epsilon_min` as in DQN. `initial_q`: the value that every pair starts from.
    """

    actions = "discrete"
    observations = "discrete"
    PARTS = ("table", "visits", "behaviour")

    def __init__(
        self,
        *,
        spec: Spec,
        seed: int,
        total_steps: int,
        gamma: Fraction,
        learning_rate: PositiveFloat,
        learning_rate_decay: NonNegativeFloat,
        initial_q: FiniteFloat,
        epsilon_schedule: Literal["linear", "multiplicative"],
        epsilon_min: Fraction,
        epsilon_fraction: Fraction,
        epsilon_decay: Fraction,
    ):
        assert spec.num_states is not None
        assert spec.num_actions is not None
        self.gamma, self.batch_size, self.device = gamma, 1, torch.device("cpu")
        self.num_actions = spec.num_actions
        self.learning_rate, self.learning_rate_decay = learning_rate, learning_rate_decay
        self.epsilon = schedule_of(epsilon_schedule, epsilon_min, epsilon_fraction, epsilon_decay, total_steps)
        self.behaviour = generator(seed, "behaviour")
        self.table = torch.full((spec.num_states, spec.num_actions), float(initial_q), dtype=torch.float64)
        self.visits = torch.zeros_like(self.table)

    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """ε-greedy actions `[N]`, ties broken at random."""

        def greedy(obs: Tensor) -> Tensor:
            return self.behave(obs, torch.rand(len(obs), self.num_actions, generator=self.behaviour))

        return epsilon_greedy(greedy, obs, self.epsilon(step), self.num_actions, self.behaviour)

    def behave(self, obs: Tensor, lottery: Tensor) -> Tensor:
        q = self.table[obs]
        return torch.where(q == q.amax(dim=-1, keepdim=True), lottery, -1.0).argmax(dim=-1)

    def act(self, obs: Tensor) -> Tensor:
        """The greedy action of lowest index, `[N]`."""
        return self.table[obs].argmax(dim=-1)

    def critique(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The greedy action, max_a Q(s, a) and no entropy bonus, each `[N]`."""
        q = self.table[obs]
        return q.argmax(dim=-1), q.amax(dim=-1), torch.zeros(len(obs))

    def exploration(self, step: int) -> dict[str, float]:
        return {"charts/epsilon": self.epsilon(step)}

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Q(s,a) ← Q(s,a) + α δ with δ = r + γ(1-d) max_a' Q(s',a') - Q(s,a); metrics and |δ| `[B]`."""
        return self.learn(batch)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        pair = (batch.obs, batch.action)
        next_value = losses.max_value(self.table[batch.next_obs])
        target = losses.td_target(batch.reward.double(), batch.discount.double(), next_value)
        q = self.table[pair]
        td_error = target - q

        self.visits.index_put_(pair, torch.ones_like(q), accumulate=True)
        step_size = self.learning_rate * self.visits[pair] ** -self.learning_rate_decay
        self.table.index_put_(pair, step_size * td_error, accumulate=True)
        return losses.critic_metrics(q, target), td_error.abs()
