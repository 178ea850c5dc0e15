"""One environment: made or refused, then played in episodes of known seeds, all that it gives checked."""

import importlib
import inspect
import math
import re
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import TimeLimit

from rl_runner.config import environment
from rl_runner.config.schema import EnvConfig
from rl_runner.config.targets import factory
from rl_runner.envs.process import CHEAP, LASTING, contained, one_line, passes, put_back, values_of
from rl_runner.envs.spaces import MOST_ACTIONS, Spec, Wrong, choices, flag, flat, parts, reader, scalar, spec_of
from rl_runner.envs.wrappers import observing
from rl_runner.errors import RunFailed, UserError
from rl_runner.seeding import derive

LARGEST_REWARD = float(np.finfo(np.float32).max)  # rewards are stored as float32
LOOK_EVERY = 128  # steps after which a long episode's traces in the process are looked for
RESET, STEP = ("obs", "info"), ("obs", "reward", "terminated", "truncated", "info")
ESTIMATES = re.compile(r"running.?(mean|stat|norm)", re.IGNORECASE)  # names of classes that estimate mean and variance
FROZEN = ("update_running_mean", "training")  # False in a normaliser of Gymnasium or Stable-Baselines3 that only scales
# Said where one more environment fails although others work.
INSTANCES = (
    "a run needs several at once: two for a probe, then num_envs to train and as many as eval_episodes, at most 10, to "
    "evaluate; if they share a port, a file or a device, give each its own"
)

_open: "weakref.WeakSet[SeededEnv]" = weakref.WeakSet()


def make(env: EnvConfig) -> gym.Env:
    """The environment with its time limit, if the runner can work with its spaces; UserError with the reason if not."""
    if problem := environment.problem(env.id):
        raise UserError(problem)

    def refused(error: BaseException) -> UserError:
        if isinstance(error, DependencyNotInstalled) and "opencv" in str(error):
            return UserError(environment.needs(f"env={env.id}", "opencv", "atari"))
        return UserError(f"env={env.id} cannot be made: {one_line(error)}")

    with contained(env.id, refused), _quiet(env.id):
        # The passive checker costs time in every step and warns about other people's code.
        limit = env.max_episode_steps
        # Below wrappers it might count frames.
        made = gym.make(env.id, max_episode_steps=-1 if env.wrappers else limit, disable_env_checker=True, **env.kwargs)
        if env.wrappers:
            made = wrapped(made, env.wrappers, limit or registered(env.id).max_episode_steps)
        if env.observation_keys:
            made = observing(made, env.observation_keys)
        if reason := refusal(made, env.frame_stack):
            raise UserError(f"env={env.id} {reason}")
        return made


def wrapped(env: gym.Env, wrappers: Sequence[Mapping[str, Any]], limit: int | None) -> gym.Env:
    """The environment within its wrappers, and all of it within a limit of the agent's steps."""
    if env.unwrapped.spec:
        env.unwrapped.spec.max_episode_steps = limit  # for wrappers that observe the time
    for i, group in enumerate(wrappers):
        # Whether it may be named was asked when the config was read; here it can only be a wrapper.
        make = factory(f"env.wrappers.{i}", group, [group["_target_"].partition(".")[0]])
        keys: Any = inspect.signature(make.func).parameters
        others = {  # than lists, for which YAML has no words
            key: (tuple if "tuple" in kind else np.array)(value)
            for key, value in make.keywords.items()
            if isinstance(value, list) and re.search("tuple|ndarray", kind := str(keys[key].annotation))
        }
        env = make(env=env, **others)
    return TimeLimit(env, limit) if limit else env


def registered(env_id: str) -> Any:
    """What Gymnasium knows of an id."""
    return gym.spec(env_id.rpartition(":")[2])


@contextmanager
def _quiet(env_id: str) -> Iterator[None]:
    """Silence what making an environment says about its own code; what it says while it runs stays audible."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "mujoco" not in str(registered(env_id).entry_point):
            yield
            return
        # MuJoCo prints past Python, and leaves MUJOCO_LOG.TXT in the working directory.
        mujoco = importlib.import_module("mujoco")
        handler = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(handler)


def refusal(env: gym.Env, frame_stack: int) -> str | None:
    """Why not to train in an environment, as a sentence that lacks its id; None if nothing is in the way."""
    observation, action = env.observation_space, env.action_space
    if unreadable := _unreadable(observation, ""):
        inner = getattr(observation, "spaces", None)
        rest = [key for key in inner if not _unreadable(inner[key], "")] if isinstance(inner, dict) else []
        how = "register it wrapped so that it observes a Box"
        if rest:
            keys = ",".join(map(str, rest))
            how = f"add env.observation_keys=[{keys}]"
        return f"observes {', '.join(unreadable)}, no array of one size: {how}"
    shape = flat(observation).shape or ()
    if 0 in shape:
        return f"observes nothing, an array of shape {shape}: wrap it so that it observes something"
    if frame_stack > 1 and isinstance(observation, spaces.Discrete):
        return f"observes a number, and env.frame_stack={frame_stack} stacks arrays: use 1"
    several = choices(action)
    if not several and not isinstance(action, spaces.Box):
        return f"acts by {_kind(action)}; Box, Discrete, MultiDiscrete and MultiBinary actions are supported"
    if len(several) > 1 and (count := math.prod(several)) > MOST_ACTIONS:
        return (
            f"acts by {_kind(action)} of {count:,} combinations, and up to {MOST_ACTIONS:,} are numbered: offer fewer, "
            "by a wrapper of yours in env.wrappers"
        )
    if 0 in (action.shape or ()):
        return f"acts by a Box of shape {action.shape}, which leaves nothing to choose"
    if isinstance(action, spaces.Box):
        with np.errstate(over="ignore", invalid="ignore"):
            if not np.isfinite(action.high.astype(np.float32) - action.low.astype(np.float32)).all():
                return "has unbounded actions; wrap it so that every action has finite bounds"
    return normalises(env)


def normalises(env: gym.Env) -> str | None:
    """Why not to train in an environment that holds running statistics and goes on with them, in the same words."""
    objects: list[Any] = [env]
    for owner in objects:  # grows by the environments that are found in it
        held = list(getattr(owner, "__dict__", {}).values())
        for value in held[:]:
            if isinstance(value, (dict, list, tuple)):
                held += list(value.values() if isinstance(value, dict) else value)[:100]
        frozen = any(getattr(owner, name, True) is False for name in FROZEN)
        if not frozen and any(_estimates(owner, value) for value in [owner, *held]):
            return (
                f"normalises by running statistics ({type(owner).__name__}), which checkpoints and further instances "
                "do not share: write normalize_observations=true or normalize_rewards=5 in its place, or freeze the "
                "statistics (update_running_mean=False)"
            )
        objects += [value for value in held if _steps(value) and all(value is not known for known in objects)]
    return None


def _steps(value: Any) -> bool:
    return all(callable(getattr(type(value), name, None)) for name in ("reset", "step"))


def _estimates(owner: Any, value: Any) -> bool:
    """By the name of the class, or by mean, variance and count in what calls itself a normaliser."""
    moments = getattr(value, "__dict__", {}).keys() >= {"mean", "var", "count"}
    named = any(ESTIMATES.search(kind.__name__) for kind in type(value).__mro__)
    return named or (moments and "normal" in type(owner).__name__.lower())


def _unreadable(space: Any, path: str) -> list[str]:
    """The parts of an observation that are no arrays of one size, each with its kind."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return [line for key, part in inner for line in _unreadable(part, f"{path}[{key!r}]")]
    try:
        readable = isinstance(flat(space), (spaces.Box, spaces.Discrete))
    except Exception:  # a space of the environment's own may raise anything
        readable = False
    return [] if readable else [f"{path} ({_kind(space)})" if path else _kind(space)]


def _kind(space: Any) -> str:
    kind = type(space).__name__
    return f"a {kind}" if isinstance(space, spaces.Space) else f"a {kind}, which is no space of Gymnasium's"


class SeededEnv:
    """One environment and its current episode; episode k is reset with derive(*stream, k).

    What it gives is checked and becomes what the agent sees. Whatever else its code does is RunFailed with its name.
    With `rebuild` every episode gets a new environment.
    """

    def __init__(self, config: EnvConfig, stream: tuple[int, str, int], rebuild: bool = False):
        self.episode = self.length = 0
        self.total = 0.0  # the return so far, in float64
        self.playing = self._used = False
        self.config, self.rebuild, self._stream = config, rebuild, stream
        try:
            self.env = make(config)
        except UserError as error:
            if any(other.config == config for other in _open):
                raise UserError(f"{error}, though it could be made once; {INSTANCES}") from error
            raise
        self.spec = spec_of(self.env, config.frame_stack)
        self._read = reader(self.env.observation_space)
        self.given: Any = None  # the last observation as it came, perhaps a buffer of the environment's
        self._frames: Any = None
        self._seen = self._stacked if config.frame_stack > 1 else self._read
        self._process = values_of(LASTING)
        _open.add(self)

    def __str__(self) -> str:
        return f"{self.config.id}, environment {self._stream[2]}, episode {self.episode}, step {self.length}"

    def described(self) -> tuple[Spec, gym.Space]:
        """What an agent may know of it, and what it takes as actions."""
        return self.spec, self.env.action_space

    def reset(self, episode: int) -> Any:
        """Begin an episode and return its first observation; RunFailed if the environment cannot."""
        if self.rebuild and self._used:
            self.close()
            try:
                self.env = make(self.config)
            except UserError as error:
                raise RunFailed(f"{error} ({self})") from error
        self.playing, self.episode, self.length, self.total = True, episode, 0, 0.0
        shared = values_of(CHEAP)
        try:
            self.given, _ = parts(self.env.reset(seed=derive(*self._stream, episode)), RESET)
            obs = self._seen(self.given)
        except BaseException as error:
            if passes(error):
                raise
            raise self._failure(error, "reset()") from error
        finally:
            put_back(CHEAP, shared, self.config.id)
            self.look()
        self._used = True
        return obs

    def step(self, action: Any) -> tuple[Any, float, bool]:
        """Act once: observation, reward, whether that terminated the episode; RunFailed if the environment breaks."""
        self.length += 1
        shared = values_of(CHEAP)
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
            put_back(CHEAP, shared, self.config.id)
        self.total += reward
        self.playing = not (terminated or truncated)
        if not self.length % LOOK_EVERY:
            self.look()
        return obs, reward, terminated

    def look(self) -> None:
        """Put back what takes too long to be looked at in every step."""
        put_back(LASTING, self._process, self.config.id)

    def close(self, told: Callable[[BaseException], Exception] | None = None) -> None:
        """Let the environment go; if it cannot, what is `told`, by default RunFailed."""
        _open.discard(self)
        self.look()
        with contained(self.config.id, told or (lambda error: self._failure(error, "close()"))):
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

    def _failure(self, error: BaseException, where: str) -> RunFailed:
        said = f"gave {error}" if isinstance(error, Wrong) else f"raised {one_line(error)} in {where}"
        alone = not self._used and any(other._used and other.config == self.config for other in _open)
        return RunFailed(f"{self.config.id} {said} ({self})" + (f"; {INSTANCES}" if alone else ""))
