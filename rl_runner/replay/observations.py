"""Where a ring keeps its observations: two in each row, or each one once."""

import torch
from torch import Tensor

from rl_runner.replay.layout import Columns, Layout

NO_ROW = torch.iinfo(torch.int64).max  # pads the sorted row numbers


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
