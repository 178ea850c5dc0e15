"""Exact continuation: an episode is a function of its reset seed and its actions, so replaying them restores it."""

import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
import torch

from rl_runner.envs.convert import Wrong, array_of, flag, parts, reader, scalar
from rl_runner.envs.process import CHEAP, LASTING, contained, glance, one_line, passes
from rl_runner.envs.refusals import normalises
from rl_runner.envs.spaces import INSTANCES, action_map, make, spec_of
from rl_runner.errors import RunFailed, UserError
from rl_runner.seeding import derive

if TYPE_CHECKING:
    from rl_runner.config.schema import EnvConfig

PROBE_STEPS, PROBE_RESETS = 50, 6
LARGEST_REWARD = float(np.finfo(np.float32).max)  # rewards are stored as float32
LOOK_EVERY = 128  # steps after which a long episode's traces in the process are looked for
RESET, STEP = ("obs", "info"), ("obs", "reward", "terminated", "truncated", "info")

_open: "weakref.WeakSet[SeededEnv]" = weakref.WeakSet()


class SeededEnv:
    """One environment and its current episode; episode k is reset with derive(*stream, k).

    What it gives is checked and becomes what the agent sees. Whatever else its code does is RunFailed with its name.
    """

    def __init__(
        self,
        config: "EnvConfig",
        stream: tuple[int, str, int],
        rebuild: bool = False,
        make: Callable[["EnvConfig"], gym.Env] = make,
    ):
        self.episode = self.length = 0
        self.total = 0.0  # the return so far, in float64
        self.playing = False
        self._config, self._stream, self._rebuild, self._make = config, stream, rebuild, make
        self._used = False
        try:
            self.env = make(config)
        except UserError as error:
            raise UserError(f"{error}{self._one_of_several()}") from error
        self.spec = spec_of(self.env, config.frame_stack)
        self._read = reader(self.env.observation_space)
        self.given: Any = None  # the last observation as it came, perhaps a buffer of the environment's
        self._frames: Any = None
        self._seen = self._stacked if config.frame_stack > 1 else self._read
        self._process = LASTING.read()
        _open.add(self)

    def __str__(self) -> str:
        return f"{self._config.id}, environment {self._stream[2]}, episode {self.episode}, step {self.length}"

    def reset(self, episode: int) -> Any:
        """Begin an episode and return its first observation; RunFailed if the environment cannot."""
        hint = "" if self._used else self._one_of_several(after_reset=True)
        if self._rebuild and self._used:
            self.close()
            try:
                self.env = self._make(self._config)
            except UserError as error:
                raise RunFailed(f"{error} ({self})") from error
        self.playing = True
        self.episode, self.length, self.total = episode, 0, 0.0
        shared = glance()
        try:
            self.given, _ = parts(self.env.reset(seed=derive(*self._stream, episode)), RESET)
            obs = self._seen(self.given)
        except BaseException as error:
            if passes(error):
                raise
            raise self._failure(error, "reset()", hint) from error
        finally:
            CHEAP.put_back(shared, self._config.id)
            self.look()
        self._used = True
        return obs

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        """Act once: observation, reward, terminated, truncated (and not terminated); RunFailed if it breaks."""
        self.length += 1
        shared = glance()
        try:
            self.given, reward, terminated, truncated, _ = parts(self.env.step(action), STEP)
            obs = self._seen(self.given)
            if type(reward) is not float:
                reward = scalar(reward, "the reward")
            if not abs(reward) <= LARGEST_REWARD:  # false for NaN, too
                raise Wrong(f"the reward {reward}")
            if not (type(terminated) is type(truncated) is bool):
                terminated, truncated = flag(terminated, "as terminated"), flag(truncated, "as truncated")
        except BaseException as error:
            if passes(error):
                raise
            raise self._failure(error, "step()") from error
        finally:
            if glance() != shared:
                CHEAP.put_back(shared, self._config.id)
        truncated = truncated and not terminated
        self.total += reward
        self.playing = not (terminated or truncated)
        if not self.length % LOOK_EVERY:
            self.look()
        return obs, reward, terminated, truncated

    def look(self) -> None:
        """Put back what takes too long to be looked at in every step."""
        LASTING.put_back(self._process, self._config.id)

    def close(self) -> None:
        """Let the environment go; RunFailed if it cannot."""
        _open.discard(self)
        self.look()
        with contained(self._config.id, lambda error: self._failure(error, "close()")):
            self.env.close()

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

    def _stacked(self, obs: Any) -> Any:
        """The last K observations, oldest first, copied; the first of an episode counts K times."""
        obs = self._read(obs)
        earlier = self._frames[1:] if self.length else [obs] * (self.spec.frame_stack - 1)
        self._frames = np.stack([*earlier, obs])
        return self._frames

    def _failure(self, error: BaseException, where: str, hint: str = "") -> RunFailed:
        said = f"gave {error}" if isinstance(error, Wrong) else f"raised {one_line(error)} in {where}"
        return RunFailed(f"{self._config.id} {said} ({self}){hint}")

    def _one_of_several(self, after_reset: bool = False) -> str:
        """How many are needed, where another one has come as far as it was made, or reset."""
        others = [other for other in _open if other is not self and other._config == self._config]
        return f"; {INSTANCES}" if any(other._used >= after_reset for other in others) else ""


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

    def __len__(self) -> int:
        return self._end - self._start

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
        if reason := normalises(first.env):  # its statistics may come with the first observation
            raise UserError(f"env={env.id} {reason}")
        exact = all(_play(second, seed) == reference for _ in range(PROBE_RESETS))
        first.close()
        second.close()
    return "exact" if exact else "boundary"


def _play(env: SeededEnv, seed: int) -> list[Any]:
    space = env.env.action_space
    rng = np.random.default_rng(seed)
    n = getattr(space, "n", None)
    size = (PROBE_STEPS, int(np.prod(space.shape or ())))
    actions = action_map(space)(rng.uniform(-1, 1, size) if n is None else rng.integers(n, size=PROBE_STEPS))
    env.reset(0)
    trace: list[Any] = [array_of(env.env.observation_space, env.given).tobytes()]
    for action in actions:
        if env.playing:
            outcome = env.step(action)[1:]
            trace.append((array_of(env.env.observation_space, env.given).tobytes(), outcome))
    return trace


@contextmanager
def _global_streams_kept() -> Iterator[None]:
    """Leave the process-wide generators as they were, which careless environments draw from."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
