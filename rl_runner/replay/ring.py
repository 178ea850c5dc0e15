"""The ring: where rows go, each observation twice or once, and how n rows become one transition."""

import math
from functools import reduce
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.errors import UserError

Storage = Literal["memory", "memmap"]

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
    """The newest transitions of N environments, R rows of them, of which the newest `size` <= `window` can be drawn.

    Rows are counted since the run's start, `head` so far: row = time * N + environment. A row's position in the ring
    is row mod R, the next row of its environment is row + N. The capacity is rounded up to a multiple of N.

    With `deduplicate` a row holds one observation, whose successor is that of the next row of its environment. The
    newest successors wait in the `pending` rows after the head, where the next step's observations overwrite them: with
    the same values, or after an episode's end with the first observation of the next one. Final observations have a
    table of their own. Of a stack [K, *frame] a row holds the newest frame; the others are those of the K-1 rows before
    it, and where the episode is younger than that, its first frame again. The oldest stacks need `history` rows.

    To restore a ring exactly, restore `state_dict()` and the rows `span` of every column, each at its position. From
    one such state to the next only the rows from N before the earlier head on can differ.
    """

    def __init__(
        self,
        spec: Spec,
        num_envs: int,
        capacity: int,
        deduplicate: bool,
        *,
        gamma: float = 1.0,
        n_step: int = 1,
        storage: Storage = "memory",
        device: torch.device | str = "meta",
        directory: Path | None = None,
    ):
        self.head, self.num_envs = 0, num_envs
        self.window = -(-capacity // num_envs) * num_envs
        self.history = (spec.frame_stack - 1) * num_envs if deduplicate else 0
        self.pending = num_envs if deduplicate else 0
        self.rows = self.history + self.window + self.pending
        self._stacked = deduplicate and spec.frame_stack > 1
        frame = spec.obs_shape[1:] if self._stacked else spec.obs_shape
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "obs": (spec.obs_dtype, frame),
            "action": (torch.int64, ()) if spec.action_dim is None else (torch.float32, (spec.action_dim,)),
            "reward": (torch.float32, ()),
            "terminated": (torch.bool, ()),
            "truncated": (torch.bool, ()),
        }
        if not deduplicate:
            shapes["next_obs"] = shapes["obs"]
        device = torch.device(device)
        self.columns = {
            name: _zeros(name, dtype, (self.rows, *shape), storage, device, directory)
            for name, (dtype, shape) in shapes.items()
        }
        self.columns["truncated"].fill_(True)  # no episode reaches back beyond the first row
        # Writing a few numbers through numpy takes half the time of a tensor's slice.
        on_cpu = device.type == "cpu"
        self._arrays = {name: column.numpy() for name, column in self.columns.items()} if on_cpu else {}
        finals = max(64, self.window // 256)  # room at first; it grows as short episodes need it
        self._finals = FinalObservations(finals, frame, spec.obs_dtype, device) if deduplicate else None
        self._head = torch.zeros((), dtype=torch.int64, device=device)  # `head` again, for compiled graphs to read
        back = [num_envs * frames for frames in reversed(range(spec.frame_stack))]
        self._back = torch.tensor(back, device=device)  # to a stack's frames; `arange` on meta imports the compiler
        self._n_step, self._gamma = n_step, gamma
        self._steps = torch.arange(n_step, device=device).unsqueeze(1)  # [n, 1]
        self._powers = torch.tensor([gamma**k for k in range(n_step + 1)], device=device)

    @property
    def nbytes(self) -> int:
        """What it takes at first; made for no device (`meta`) it takes nothing, and tells."""
        finals = self._finals.nbytes if self._finals else 0
        return sum(column.nbytes for column in self.columns.values()) + finals

    @property
    def window_start(self) -> int:
        """The oldest row that can be drawn."""
        return max(0, self.head - self.window)

    @property
    def size(self) -> int:
        """How many rows can be drawn."""
        return self.head - self.window_start

    @property
    def span(self) -> range:
        """The rows that drawing depends on: the window, older frames of its stacks, and waiting successors."""
        return range(max(0, self.window_start - self.history), self.head + self.pending)

    def at(self, row: int) -> slice:
        """Where the ring holds the time row that begins with `row`."""
        start = row % self.rows
        return slice(start, start + self.num_envs)

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """Append one row of each environment, [N, ...]; `next_obs` is the true successor at an episode's end too."""
        if self._stacked:
            obs, next_obs = obs[:, -1], next_obs[:, -1]
        here = self.at(self.head)
        self._write(here, obs=obs, action=action, reward=reward, terminated=terminated, truncated=truncated)
        if self._finals is None:
            self._write(here, next_obs=next_obs)
        else:
            self._write(self.at(self.head + self.num_envs), obs=next_obs)
            self._end(self.head, terminated | truncated)
        self._move_head(self.head + self.num_envs)

    def cut(self) -> None:
        """Truncate the running episodes: the environments were reset in the middle of them."""
        if self.head == 0:
            return
        newest = self.head - self.num_envs
        self._end(newest, torch.ones(self.num_envs, dtype=torch.bool))
        rows = self.at(newest)
        self.columns["truncated"][rows] |= ~self.columns["terminated"][rows]

    def batch(self, position: Tensor, weight: Tensor) -> Batch:
        """The transitions that begin at ring positions [B], with importance weights [B]; traceable."""
        if self._n_step == 1:
            last, reward = position, self._take("reward", position)
            discount = torch.where(self._take("terminated", position), 0.0, self._gamma)
        else:
            last, reward, discount = self._returns(position)
        if self._finals is None:
            obs, next_obs = self._take("obs", position), self._take("next_obs", last)
        else:
            obs, next_obs = self._shared(position, last, self._finals)
        return Batch(obs, self._take("action", position), reward, discount, next_obs, weight, position)

    def state_dict(self) -> dict[str, Any]:
        """What the columns do not hold, not copied."""
        return {"head": self.head, "finals": self._finals.state_dict() if self._finals else {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._finals:
            self._finals.load_state_dict(state["finals"])
        self._move_head(state["head"])

    def _move_head(self, head: int) -> None:
        self.head = head
        self._head.fill_(head)

    def _write(self, rows: slice, **values: Tensor) -> None:
        for name, value in values.items():
            if self._arrays:
                self._arrays[name][rows] = value.numpy()
            else:
                self.columns[name][rows] = value

    def _take(self, name: str, rows: Tensor) -> Tensor:
        """The values of rows [...] as [..., *column]."""
        taken = self.columns[name].index_select(0, rows.flatten())
        return taken if rows.ndim == 1 else taken.view(*rows.shape, *taken.shape[1:])

    def _ended(self, rows: Tensor) -> Tensor:
        """Whether an episode ended in rows [...], in either way."""
        return self._take("terminated", rows) | self._take("truncated", rows)

    def _returns(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The position of the last of k <= n steps, the sum of their discounted rewards, γ^k (1 - terminated); [B]."""
        ahead = (position + self._steps * self.num_envs) % self.rows  # [n, B]
        unbroken = (~self._ended(ahead[:-1])).cumprod(dim=0).sum(dim=0)
        newer = (self._head - 1 - position) % self.rows // self.num_envs
        steps = unbroken.minimum(newer)  # from the first row to the last, k - 1
        last = ahead.gather(0, steps.unsqueeze(0)).squeeze(0)
        terms = torch.where(self._steps <= steps, self._take("reward", ahead) * self._powers[:-1, None], 0.0)
        discount = torch.where(self._take("terminated", last), 0.0, self._powers[steps + 1])
        return last, reduce(torch.add, terms.unbind()), discount

    def _end(self, row: int, ended: Tensor) -> None:
        """Keep the waiting successors of the time row that begins with `row` where an episode ended, [N]."""
        if self._finals and ended.any():
            waiting = self.columns["obs"][self.at(row + self.num_envs)]
            oldest = row + self.num_envs - self.window
            self._finals.append(row + ended.nonzero().squeeze(1), waiting[ended], oldest)

    def _shared(self, first: Tensor, last: Tensor, finals: "FinalObservations") -> tuple[Tensor, Tensor]:
        """The observations at positions `first` [B] and the successors of those at `last` [B]."""
        following = self._take("obs", (last + self.num_envs) % self.rows)
        final = finals.find(self._head - 1 - (self._head - 1 - last) % self.rows)
        ended = self._ended(last).view(-1, *[1] * (following.ndim - 1))
        newest = torch.where(ended, final, following)
        if not self._stacked:
            return self._take("obs", first), newest
        obs = self._stack(first)
        older = obs if last is first else self._stack(last)
        return obs, torch.cat([older[:, 1:], newest.unsqueeze(1)], dim=1)

    def _stack(self, position: Tensor) -> Tensor:
        """The stacks [B, K, *frame], oldest first, whose newest frames are at the positions [B]."""
        position = position.unsqueeze(1)
        before = (position - self._back[:-1].flip(0)) % self.rows  # [B, K-1], newest first
        age = self.num_envs * (~self._ended(before)).cumprod(dim=1).sum(dim=1, keepdim=True)
        return self._take("obs", (position - self._back.minimum(age)) % self.rows)


class FinalObservations:
    """A queue sorted by row number, counted since the run's start: it grows at the end and expires at the front."""

    def __init__(self, room: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
        self._count = 0
        self._row = torch.empty(0, dtype=torch.int64, device=device)
        self._obs = torch.empty(0, *shape, dtype=dtype, device=device)
        self._move(expired=0, room=room)

    @property
    def nbytes(self) -> int:
        return self._row.nbytes + self._obs.nbytes

    def append(self, row: Tensor, obs: Tensor, oldest: int) -> None:
        """Add the final observations [M, *frame] of ascending rows [M], in place of any that are not older than these.

        Rows before `oldest` are never looked up again.
        """
        kept = int(torch.searchsorted(self._row, row[:1].to(self._row.device))) if self._count and len(row) else 0
        self._row[kept : self._count] = NO_ROW
        self._count = kept
        if self._count + len(row) > len(self._row):
            expired = int(torch.searchsorted(self._row, oldest))
            needed = self._count - expired + len(row)
            # Half of the room must be free afterwards, or one would soon be moving all of it for every new entry.
            self._move(expired, room=max(len(self._row), 2 * needed))
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

    def _move(self, expired: int, room: int) -> None:
        live = slice(expired, self._count)
        self._count -= expired
        row, obs = self._row.new_full((room,), NO_ROW), self._obs.new_zeros(room, *self._obs.shape[1:])
        row[: self._count], obs[: self._count] = self._row[live], self._obs[live]
        self._row, self._obs = row, obs
        # A compiled graph that reads the table must not be compiled anew each time that it grows.
        torch._dynamo.maybe_mark_dynamic(row, 0)
        torch._dynamo.maybe_mark_dynamic(obs, 0)


def _zeros(
    name: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    storage: Storage,
    device: torch.device,
    directory: Path | None,
) -> Tensor:
    """A column, in memory or in a file under the run's directory that no other process needs."""
    if storage == "memory":
        return torch.zeros(shape, dtype=dtype, device=device)
    if device.type != "cpu":
        raise UserError(f"replay.storage=memmap works with device=cpu only; with device={device} use storage=memory")
    assert directory is not None
    path = directory / "replay" / f"{name}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # what an earlier process left is not zero
    flat = torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype)
    path.unlink()  # the mapping stays, and however this process ends, nothing is left behind
    return flat.view(shape)
