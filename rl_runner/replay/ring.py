"""The ring: where rows go, how n of them become one transition, and where observations lie: in pairs, or each once."""

from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rl_runner.replay.layout import Columns, Layout, Storage

NO_ROW = torch.iinfo(torch.int64).max  # pads the sorted row numbers


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


class PairedObservations:
    """Each row holds an observation and its successor."""

    def __init__(self, columns: Columns, layout: Layout):
        self._columns, self._layout = columns, layout

    def add(self, row: int, obs: Tensor, next_obs: Tensor) -> None:
        rows = self._layout.at(row)
        self._columns.write("obs", rows, obs)
        self._columns.write("next_obs", rows, next_obs)

    def end(self, row: int, ended: Tensor) -> None:
        """Nothing to keep: each row has its successor."""

    def gather(self, first: Tensor, last: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """The observations at positions `first` [B] and the successors of those at `last` [B]."""
        return self._columns.take("obs", first), self._columns.take("next_obs", last)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        pass


class SharedObservations:
    """Each row holds one observation; its successor is the observation in the next row of its environment.

    The newest successors wait in the rows after the head, where the next step's observations overwrite them: with
    the same values, or after an episode's end with the first observation of the next one. Final observations have a
    table of their own. Of a stack [K, *frame] a row holds the newest frame; the others are those of the K-1 rows
    before it, and where the episode is younger than that, its first frame again.
    """

    def __init__(self, columns: Columns, layout: Layout):
        device = columns.tensors["obs"].device
        self._columns, self._layout, self._rows, self._num_envs = columns, layout, layout.rows, layout.num_envs
        self._stacked = layout.spec.frame_stack > 1
        self._back = layout.num_envs * torch.arange(layout.spec.frame_stack - 1, -1, -1, device=device)  # oldest first
        self._finals = FinalObservations(layout.finals, layout.frame_shape, layout.spec.obs_dtype, device)

    def add(self, row: int, obs: Tensor, next_obs: Tensor) -> None:
        if self._stacked:
            obs, next_obs = obs[:, -1], next_obs[:, -1]
        self._columns.write("obs", self._layout.at(row), obs)
        self._columns.write("obs", self._layout.at(row + self._num_envs), next_obs)

    def end(self, row: int, ended: Tensor) -> None:
        """Keep the successors of the newest rows, from `row` on, where an episode ended [N]."""
        if not ended.any():
            return
        waiting = self._columns.tensors["obs"][self._layout.at(row + self._num_envs)]
        oldest = row + self._num_envs - self._layout.window
        self._finals.append(row + ended.nonzero().squeeze(1), waiting[ended], oldest)

    def gather(self, first: Tensor, last: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """The observations at positions `first` [B] and the successors of those at `last` [B]."""
        following = self._columns.take("obs", (last + self._num_envs) % self._rows)
        final = self._finals.find(head - 1 - (head - 1 - last) % self._rows)
        ended = self._columns.ended(last).view(-1, *[1] * (following.ndim - 1))
        newest = torch.where(ended, final, following)
        if not self._stacked:
            return self._columns.take("obs", first), newest
        obs = self._stack(first)
        older = obs if last is first else self._stack(last)
        return obs, torch.cat([older[:, 1:], newest.unsqueeze(1)], dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        return self._finals.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._finals.load_state_dict(state)

    def _stack(self, position: Tensor) -> Tensor:
        """The stacks [B, K, *frame] whose newest frames are at the positions [B]."""
        position = position.unsqueeze(1)
        before = (position - self._back[:-1].flip(0)) % self._rows  # [B, K-1], newest first
        age = self._num_envs * (~self._columns.ended(before)).cumprod(dim=1).sum(dim=1, keepdim=True)
        return self._columns.take("obs", (position - self._back.minimum(age)) % self._rows)


class FinalObservations:
    """A queue sorted by row number, counted since the run's start: it grows at the end and expires at the front."""

    def __init__(self, room: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        self._count = 0
        self._row = torch.empty(0, dtype=torch.int64, device=device)
        self._obs = torch.empty(0, *shape, dtype=dtype, device=device)
        self._move(expired=0, room=room)

    def append(self, row: Tensor, obs: Tensor, oldest: int) -> None:
        """Add the final observations [M, *frame] of ascending rows [M], in place of any that are not older than these.

        Rows before `oldest` are never looked up again.
        """
        kept = int(torch.searchsorted(self._row, row[:1].to(self._row.device))) if self._count and len(row) else 0
        self._row[kept : self._count] = NO_ROW
        self._count = kept
        if self._count + len(row) > len(self._row):
            self._make_room(len(row), oldest)
        added = slice(self._count, self._count + len(row))
        self._row[added], self._obs[added] = row, obs
        self._count = added.stop

    def find(self, row: Tensor) -> Tensor:
        """The final observations [B, *frame] of rows [B]; any others for rows that have none."""
        place = torch.searchsorted(self._row, row)
        return self._obs.index_select(0, place.clamp(max=self._row.shape[0] - 1))

    def state_dict(self) -> dict[str, Tensor]:
        """The entries in use, not copied."""
        return {"row": self._row[: self._count], "obs": self._obs[: self._count]}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._count = 0
        self._row.fill_(NO_ROW)
        self.append(state["row"], state["obs"], oldest=0)

    def _make_room(self, rows: int, oldest: int) -> None:
        expired = int(torch.searchsorted(self._row, oldest))
        needed = self._count - expired + rows
        # Half of the room must be free afterwards, or one would soon be moving all of it for every new entry.
        self._move(expired, room=max(len(self._row), 2 * needed))

    def _move(self, expired: int, room: int) -> None:
        live = slice(expired, self._count)
        self._count -= expired
        row, obs = self._row.new_full((room,), NO_ROW), self._obs.new_zeros(room, *self._obs.shape[1:])
        row[: self._count], obs[: self._count] = self._row[live], self._obs[live]
        self._row, self._obs = row, obs
        # A compiled graph that reads the table must not be compiled anew each time that it grows.
        torch._dynamo.maybe_mark_dynamic(row, 0)
        torch._dynamo.maybe_mark_dynamic(obs, 0)
