"""Exact continuation: an episode is a function of its reset seed and its actions, so replaying them restores it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from rl_runner.envs.spaces import action_map, make, one_line
from rl_runner.errors import RunFailed
from rl_runner.seeding import derive

if TYPE_CHECKING:
    from rl_runner.config.schema import EnvConfig

PROBE_STEPS, PROBE_RESETS = 50, 6
LARGEST_REWARD = float(np.finfo(np.float32).max)  # rewards are stored as float32


class SeededEnv:
    """One environment and its current episode; episode k is reset with derive(*stream, k)."""

    def __init__(self, config: "EnvConfig", stream: tuple[int, str, int], rebuild: bool = False):
        self.env = make(config)
        self.episode = self.length = 0
        self.total = 0.0  # the return so far, in float64
        self.playing = False
        self._config, self._stream, self._rebuild = config, stream, rebuild
        self._used = False

    def __str__(self) -> str:
        return f"{self._config.id}, environment {self._stream[2]}, episode {self.episode}, step {self.length}"

    def reset(self, episode: int) -> Any:
        """Begin an episode and return its first observation; RunFailed if the environment cannot."""
        if self._rebuild and self._used:
            self.env.close()
            self.env = make(self._config)
        self._used = self.playing = True
        self.episode, self.length, self.total = episode, 0, 0.0
        try:
            obs, _ = self.env.reset(seed=derive(*self._stream, episode))
        except Exception as error:
            raise RunFailed(f"{self._config.id} raised {one_line(error)} in reset() ({self})") from error
        if np.shape(obs) != self.env.observation_space.shape:
            shapes = f"{np.shape(obs)} instead of {self.env.observation_space.shape}"
            raise RunFailed(f"{self._config.id} gave an observation of shape {shapes} ({self})")
        return obs

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        """Act once: observation, reward, terminated, truncated (and not terminated); RunFailed if it breaks."""
        self.length += 1
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action)
            reward = float(reward)
        except Exception as error:
            raise RunFailed(f"{self._config.id} raised {one_line(error)} in step() ({self})") from error
        if not abs(reward) <= LARGEST_REWARD:  # false for NaN, too
            raise RunFailed(f"{self._config.id} gave the reward {reward} ({self})")
        self.total += reward
        terminated = bool(terminated)
        truncated = bool(truncated) and not terminated
        self.playing = not (terminated or truncated)
        return obs, reward, terminated, truncated

    def replay(self, episode: int, actions: np.ndarray) -> Any:
        """The last observation after these actions, [T, ...]; None if the episode does not get as far again."""
        try:
            obs = self.reset(episode)
            for action in actions:
                if not self.playing:
                    return None
                obs = self.step(action)[0]
        except RunFailed:
            return None
        return obs if self.playing else None


class ActionHistory:
    """The agent's actions since the oldest running episode began, [T, N, ...], in an array that grows when it must."""

    def __init__(self, row: np.ndarray):
        self._rows = np.empty((1024, *row.shape), row.dtype)
        self._start = self._end = 0

    def append(self, action: np.ndarray) -> np.ndarray:
        """Copy the actions of one vector step, [N, ...], and return them as they are kept."""
        if self._end == len(self._rows):
            self.restore(self.rows)
        row = self._rows[self._end]
        row[...] = action
        self._end += 1
        return row

    def keep(self, length: int) -> None:
        """Forget all but the last `length` steps."""
        self._start = self._end - length

    @property
    def rows(self) -> np.ndarray:
        """What is kept, [T, N, ...]; a view."""
        return self._rows[self._start : self._end]

    def restore(self, rows: np.ndarray) -> None:
        """Keep these rows and no others, with room for as many again."""
        room = np.empty((max(1024, len(rows)), *rows.shape[1:]), rows.dtype)
        self._rows = np.concatenate([rows, room])
        self._start, self._end = 0, len(rows)


def probe(env: "EnvConfig", seed: int, rebuild: bool = False) -> Literal["exact", "boundary"]:
    """Whether one random episode comes out bit for bit the same in two new environments and after every further reset.

    "exact": a run is continued in the middle of an episode, by replay. "boundary": only at the next episode.
    """
    with _global_streams_kept():
        first, second = (SeededEnv(env, (seed, "probe", 0), rebuild) for _ in range(2))
        reference = _play(first, seed)
        exact = all(_play(second, seed) == reference for _ in range(PROBE_RESETS))
        first.env.close()
        second.env.close()
    return "exact" if exact else "boundary"


def _play(env: SeededEnv, seed: int) -> list[tuple[bytes, float, bool, bool]]:
    space = env.env.action_space
    rng = np.random.default_rng(seed)
    n = getattr(space, "n", None)
    size = (PROBE_STEPS, int(np.prod(space.shape or ())))
    actions = action_map(space)(rng.uniform(-1, 1, size) if n is None else rng.integers(n, size=PROBE_STEPS))
    trace = [(np.asarray(env.reset(0)).tobytes(), 0.0, False, False)]
    for action in actions:
        if env.playing:
            obs, reward, terminated, truncated = env.step(action)
            trace.append((np.asarray(obs).tobytes(), reward, terminated, truncated))
    return trace


@contextmanager
def _global_streams_kept() -> Iterator[None]:
    """Leave the process-wide generators as they were, which careless environments draw from."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
