"""The final observations of ended episodes, which no row of a deduplicated ring holds."""

import torch
from torch import Tensor

NO_ROW = torch.iinfo(torch.int64).max  # pads the sorted row numbers


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
