"""The ring: where rows go, and how n of them become one transition."""

from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_runner.replay.layout import Columns, Layout, Storage
from rl_runner.replay.observations import PairedObservations, SharedObservations


class Batch(NamedTuple):
    """B transitions on the learner's device; with n-step returns a transition spans k <= n steps."""

    obs: Tensor  # [B, *obs] float32, uint8, or int64 for Discrete observations
    action: Tensor  # [B] int64, or [B, act] float32 in [-1, 1]
    reward: Tensor  # [B] float32; r_0 + γ r_1 + ... + γ^(k-1) r_(k-1)
    discount: Tensor  # [B] float32; γ^k (1 - terminated after the k-th step)
    next_obs: Tensor  # [B, *obs]; the true successor of the k-th step, also at termination and truncation
    weight: Tensor  # [B] float32; importance weight, 1 unless prioritized
    index: Tensor  # type: ignore[assignment]  # [B] int64; the ring row of the first step


class Ring:
    """The newest transitions of N environments, R rows of them.

    Rows are counted since the run's start, `head` so far: row = time * N + environment. A row's position in the ring
    is row mod R, the next row of its environment is row + N, and the newest `size` rows can be drawn.

    To restore a ring exactly, restore `state_dict()` and the rows `span` of every column, each at its position. From
    one such state to the next only the rows from N before the earlier head on can differ.
    """

    def __init__(
        self, layout: Layout, gamma: float, n_step: int, storage: Storage, device: torch.device, directory: Path | None
    ):
        self.layout = layout
        self.head = 0
        self._columns = Columns(layout.columns(), storage, device, directory)
        self.columns["truncated"].fill_(True)  # no episode reaches back beyond the first row
        self._head = torch.zeros((), dtype=torch.int64, device=device)  # `head` again, for compiled graphs to read
        self._rows, self._num_envs = layout.rows, layout.num_envs
        observations = SharedObservations if layout.deduplicate else PairedObservations
        self._observations = observations(self._columns, layout)
        self._n_step, self._gamma = n_step, gamma
        self._steps = torch.arange(n_step, device=device).unsqueeze(1)  # [n, 1]
        self._powers = torch.tensor([gamma**k for k in range(n_step + 1)], device=device)

    @property
    def columns(self) -> dict[str, Tensor]:
        """The stored tensors by name, [R, ...]; not copies."""
        return self._columns.tensors

    @property
    def window_start(self) -> int:
        """The oldest row that can be drawn."""
        return max(0, self.head - self.layout.window)

    @property
    def size(self) -> int:
        """How many rows can be drawn."""
        return self.head - self.window_start

    @property
    def span(self) -> range:
        """The rows that drawing depends on: the window, older frames of its stacks, and waiting successors."""
        return range(max(0, self.window_start - self.layout.history), self.head + self.layout.pending)

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """Append one row of each environment, [N, ...]; `next_obs` is the true successor at an episode's end too."""
        rows, write = self.layout.at(self.head), self._columns.write
        write("action", rows, action)
        write("reward", rows, reward)
        write("terminated", rows, terminated)
        write("truncated", rows, truncated)
        self._observations.add(self.head, obs, next_obs)
        if self.layout.deduplicate:
            self._observations.end(self.head, terminated | truncated)
        self._move_head(self.head + self._num_envs)

    def cut(self) -> None:
        """Truncate the running episodes: the environments were reset in the middle of them."""
        if self.head == 0:
            return
        newest = self.head - self._num_envs
        self._observations.end(newest, torch.ones(self._num_envs, dtype=torch.bool))
        rows = self.layout.at(newest)
        self.columns["truncated"][rows] |= ~self.columns["terminated"][rows]

    def batch(self, position: Tensor, weight: Tensor) -> Batch:
        """The transitions that begin at ring positions [B], with importance weights [B]; traceable."""
        last, reward, discount = self._returns(position)
        obs, next_obs = self._observations.gather(position, last, self._head)
        return Batch(obs, self._columns.take("action", position), reward, discount, next_obs, weight, position)

    def state_dict(self) -> dict[str, Any]:
        """What the columns do not hold, not copied."""
        return {"head": self.head, "finals": self._observations.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._observations.load_state_dict(state["finals"])
        self._move_head(state["head"])

    def _move_head(self, head: int) -> None:
        self.head = head
        self._head.fill_(head)

    def _returns(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The position of the last of k <= n steps, the sum of their discounted rewards, γ^k (1 - terminated); [B]."""
        take = self._columns.take
        if self._n_step == 1:
            discount = torch.where(take("terminated", position), 0.0, self._gamma)
            return position, take("reward", position), discount
        ahead = (position + self._steps * self._num_envs) % self._rows  # [n, B]
        unbroken = (~self._columns.ended(ahead[:-1])).cumprod(dim=0).sum(dim=0)
        newer = (self._head - 1 - position) % self._rows // self._num_envs
        steps = unbroken.minimum(newer)  # from the first row to the last, k - 1
        last = ahead.gather(0, steps.unsqueeze(0)).squeeze(0)
        terms = torch.where(self._steps <= steps, take("reward", ahead) * self._powers[:-1, None], 0.0)
        discount = torch.where(take("terminated", last), 0.0, self._powers[steps + 1])
        return last, reduce(torch.add, terms.unbind()), discount
