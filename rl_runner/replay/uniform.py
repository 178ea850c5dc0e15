"""Experience replay (Lin 1992; Mnih et al. 2015), and what was just seen alone: every transition is equally likely."""

import shutil
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import PositiveInt
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.errors import UserError
from rl_runner.persistence import CHECKPOINT
from rl_runner.replay.ring import Batch, Ring, Storage
from rl_runner.seeding import generator

FILES = 1.05  # of the rows: what their files take with those that only the older of two checkpoints needs


class UniformReplay:
    """The newest `capacity` transitions, drawn uniformly with replacement.

    `n_step`: learn from the discounted sum of so many rewards, fewer where an episode ends or the newest row is near.
    `deduplicate`: store each observation, or each frame of a stack, once instead of twice.
    `storage`: `memory`, the device's, or `memmap`, files in the run directory.
    """

    def __init__(
        self,
        *,
        spec: Spec,
        num_envs: int,
        gamma: float,
        total_steps: int,
        seed: int,
        device: torch.device | str,
        directory: Path | None,
        capacity: PositiveInt,
        n_step: PositiveInt = 1,
        deduplicate: bool = False,
        storage: Storage = "memory",
    ):
        self._device = torch.device(device)
        self.grows = deduplicate  # the table of final observations is moved when it is full
        where: dict[str, Any] = {"storage": storage, "device": self._device, "directory": directory}
        self.ring = Ring(spec, num_envs, capacity, deduplicate, gamma=gamma, n_step=n_step, **where)
        self._generator = generator(seed, "replay", self._device)

    @staticmethod
    def nbytes(spec: Spec, num_envs: int, *, capacity: int, deduplicate: bool = False, **_: Any) -> int:
        """Bytes that a replay with these keys takes when it is made."""
        return Ring(spec, num_envs, capacity, deduplicate).nbytes

    @property
    def size(self) -> int:
        """How many transitions can be drawn."""
        return self.ring.size

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """Store one step of each environment, [N, ...]; `next_obs` is the true successor at an episode's end too."""
        self.ring.add(obs, action, reward, terminated, truncated, next_obs)

    def cut(self) -> None:
        """Truncate the running episodes: the environments were reset in the middle of them."""
        self.ring.cut()

    def draw(self, batch_size: int, step: int) -> tuple[Tensor, ...]:
        """What is random in a batch: rows [B], counted since the run's start."""
        oldest, end, stream = self.ring.window_start, self.ring.head, self._generator
        return (torch.randint(oldest, end, (batch_size,), generator=stream, device=self._device),)

    def gather(self, row: Tensor) -> Batch:
        """The transitions that `draw` chose; traceable."""
        return self.ring.batch(row % self.ring.rows, torch.ones(row.shape, device=self._device))

    def prioritize(self, index: Tensor, td_error: Tensor) -> None:
        """Nothing: all transitions are equal."""

    def state_dict(self) -> dict[str, Any]:
        """All but the ring's columns; see `Ring` for what an exact restoration needs."""
        return {"ring": self.ring.state_dict(), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ring.load_state_dict(state["ring"])
        self._generator.set_state(state["generator"])


class LastReplay:
    """The newest step of each environment, drawn in turn: with as many updates as rows, each row is learnt once.

    No replay, as tabular Q-learning wants it. The rows stay on the CPU, where tables are.
    """

    def __init__(self, *, gamma: float):
        self._gamma = gamma
        self._newest: tuple[Tensor, ...] = ()
        self._drawn = 0

    @staticmethod
    def nbytes(spec: Spec, num_envs: int, **_: Any) -> int:
        """Nothing worth counting."""
        return 0

    @property
    def size(self) -> int:
        """How many transitions can be drawn."""
        return len(self._newest[0]) if self._newest else 0

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """Keep one step of each environment, [N, ...], in place of the step before."""
        self._newest = (obs, action, reward, terminated, next_obs)
        self._drawn = 0

    def draw(self, batch_size: int, step: int) -> tuple[Tensor, ...]:
        """The next rows of the newest step, [B, ...], fewer at its end, then again from its start; nothing random."""
        start = self._drawn % self.size
        self._drawn = min(start + batch_size, self.size)
        return tuple(values[start : self._drawn] for values in self._newest)

    def gather(self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, next_obs: Tensor) -> Batch:
        """The batch of what `draw` gave; traceable."""
        index = torch.arange(reward.shape[0], device=reward.device)
        discount = torch.where(terminated, 0.0, self._gamma)
        return Batch(obs, action, reward, discount, next_obs, torch.ones_like(reward), index)

    def prioritize(self, index: Tensor, td_error: Tensor) -> None:
        """Nothing: all transitions are equal."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: a new step comes before the next update."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def check_memory(
    replay: Any,
    spec: Spec,
    num_envs: int,
    *,
    device: torch.device | str,
    directory: Path | None,
    total_steps: int,
    capacity: int,
    **keys: Any,
) -> None:
    """UserError if a replay with these config keys does not fit in what is free, naming a capacity that does.

    `directory`: of the run, whose checkpoints hold as many rows as there are steps, at most; what they hold is theirs.
    """

    def taken(capacity: int) -> int:
        return int(replay.nbytes(spec, num_envs, capacity=capacity, **keys))

    def written(capacity: int) -> int:
        mapped = keys.get("storage") == "memmap"
        return int(taken(capacity) * (mapped + FILES * min(1.0, total_steps / capacity)))

    places: list[tuple[str, str, int, Callable[[int], int]]] = []
    if directory is None or keys.get("storage") != "memmap":
        on_gpu = torch.device(device).type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        places.append(("", f"on {device}" if on_gpu else "in memory", free, taken))
    if directory is not None:
        there = sum(file.stat().st_size for file in (directory / CHECKPOINT).rglob("*.rows"))
        existing = next(parent for parent in [directory, *directory.resolve().parents] if parent.exists())
        free = shutil.disk_usage(existing).free + there
        places.append((" of files", f"on the disk of {directory}", free, written))
    for what, place, free, bytes_at in places:
        if (needed := bytes_at(capacity)) <= free:
            continue
        fits = bisect_right(range(1, capacity), free, key=bytes_at)
        rounded = fits // (digit := 10 ** max(0, len(str(fits)) - 2)) * digit
        raise UserError(
            f"replay.capacity={capacity} needs {needed / 1e9:.2f} GB{what}, {free / 1e9:.2f} GB are free {place}: "
            f"replay.capacity={rounded} would fit"
        )
