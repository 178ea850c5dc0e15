"""Where a ring keeps its observations: two in each row, or each one once."""

import torch
from torch import Tensor

from rl_runner.replay.columns import Columns
from rl_runner.replay.finals import FinalObservations
from rl_runner.replay.layout import Layout


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
