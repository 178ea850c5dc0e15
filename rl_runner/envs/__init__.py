"""Gymnasium's environments as tensors: true successors, seeded episodes, and their exact continuation.

An episode is a function of its reset seed and its actions, so replaying those restores it.
"""

import copy
import functools
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl_runner.config.schema import EnvConfig
from rl_runner.envs.process import one_line
from rl_runner.envs.seeded import SeededEnv, make, normalises
from rl_runner.envs.spaces import Spec, action_map, array_of, spec_of
from rl_runner.envs.workers import RemoteEnv
from rl_runner.errors import RunFailed, UserError

__all__ = ["EVAL_LIMIT", "Envs", "Spec", "Step", "examine", "make", "probe_continuity", "spec_of"]

EVAL_LIMIT = 1000  # steps after which evaluation cuts the episodes of an environment without a time limit
LONGEST = 100_000  # steps of an episode that can be played again; the actions of a longer one are not kept
PROBE_STEPS, PROBE_RESETS = 50, 6


class Step(NamedTuple):
    """The result of one vector step."""

    next_obs: Tensor  # [N, *obs]; the true successor: at an episode's end its final observation
    reward: Tensor  # [N] float32
    terminated: Tensor  # [N] bool; never for a time limit
    truncated: Tensor  # [N] bool; never where terminated
    episodes: list[tuple[float, int]]  # (return, length) of the episodes that ended in this step


class Envs:
    """N copies of an environment, stepped in turn, or with `apart` each in a process of its own, all at once.

    Episode k of environment i is reset with a seed of its own, derive(seed, name, i, k). With `auto_reset=False` an
    environment whose episode has ended rests, its reward 0 and its observation unchanged, until `reset`. With
    `rebuild=True` every episode gets a new environment, for one whose reset leaves traces of the episode before.
    """

    obs: Tensor  # [N, *obs]; the current observation, after any reset; a new tensor in every step
    first: Tensor  # [N] bool; whether obs is the first of an episode
    active: Tensor  # [N] bool; whether the episode goes on: False only without auto_reset

    def __init__(
        self,
        env: EnvConfig,
        num_envs: int,
        seed: int,
        name: str = "train",
        auto_reset: bool = True,
        rebuild: bool = False,
        apart: bool = False,
    ):
        self.num_envs = num_envs
        self._auto_reset, self._apart = auto_reset, apart
        kind: Any = RemoteEnv if apart else SeededEnv
        self._seeded: list[SeededEnv] = [kind(env, (seed, name, i), rebuild) for i in range(num_envs)]
        described = [each.described() for each in self._seeded]
        self.spec, space = described[0]
        if any(each != described[0] for each in described):
            raise UserError(f"env={env.id} has different spaces each time that it is made: register it with fixed ones")
        self._to_env_actions = action_map(space)
        self._none = torch.zeros(num_envs, dtype=torch.bool)  # shared by all steps, so never written
        self._blank = torch.zeros(num_envs, *self.spec.obs_shape, dtype=self.spec.obs_dtype).numpy()
        dim = self.spec.action_dim
        self._blank_action = np.zeros(num_envs, np.int64) if dim is None else np.zeros((num_envs, dim), np.float32)
        self._actions = bytearray()  # the agent's, of the last steps, [T, N, ...]: since the oldest episode began
        self.reset()

    @property
    def envs(self) -> list[gym.Env]:
        """The N Gymnasium environments themselves, to render or to look into; none of those apart."""
        return [] if self._apart else [seeded.env for seeded in self._seeded]

    @property
    def holdings(self) -> set[str]:
        """The pipes and processes of environments apart, as `beside` lists what a process holds."""
        return {held for env in self._seeded for held in getattr(env, "holdings", ())}

    def reset(self, episode: int = 0) -> None:
        """Start the given episode in every environment."""
        obs = np.empty_like(self._blank)
        self._ahead("reset", dict.fromkeys(range(self.num_envs), (episode,)))
        for i, env in enumerate(self._seeded):
            obs[i] = env.reset(episode)
        self._begin(obs)

    def step(self, action: Tensor) -> Step:
        """Act in every environment, [N] int64 or [N, action_dim] in [-1, 1]; RunFailed if one of them breaks."""
        agents = np.asarray(action.numpy(force=True), self._blank_action.dtype).reshape(self._blank_action.shape)
        self._actions += agents.tobytes()
        actions = self._to_env_actions(agents)
        obs, reward = np.empty_like(self._blank), np.zeros(self.num_envs, np.float32)
        ended: dict[int, bool] = {}  # environment: whether it terminated
        if self._apart:
            self._ahead("step", {i: (actions[i],) for i, env in enumerate(self._seeded) if env.playing})
        for i, env in enumerate(self._seeded):
            if not env.playing:
                obs[i] = self.obs[i]
                continue
            obs[i], reward[i], terminal = env.step(actions[i])
            if not env.playing:
                ended[i] = terminal
        if len(self._actions) > LONGEST * agents.nbytes:
            self._let_go()
        self.obs, self.first = torch.from_numpy(obs), self._none
        step = Step(self.obs, torch.from_numpy(reward), self._none, self._none, [])
        if ended:
            step = step._replace(
                terminated=torch.tensor([ended.get(i, False) for i in range(self.num_envs)]),
                truncated=torch.tensor([not ended.get(i, True) for i in range(self.num_envs)]),
                episodes=[(self._seeded[i].total, self._seeded[i].length) for i in ended],
            )
            self._after(list(ended))
        return step

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to bring every running episode back: its number and its actions."""
        self._forget()
        actions = np.frombuffer(self._actions[:], self._blank_action.dtype).reshape(-1, *self._blank_action.shape)
        return {
            "episode": [env.episode for env in self._seeded],
            "length": [env.length for env in self._seeded],
            "return": [env.total for env in self._seeded],
            "obs": self.obs,
            "actions": torch.from_numpy(actions),
        }

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Replay the running episodes; one line for each that did not come out bit for bit and so begins anew."""
        actions, obs = state["actions"].numpy(), state["obs"].numpy().copy()
        self._actions = bytearray(actions.tobytes())
        again = {
            i: (episode, self._to_env_actions(actions[len(actions) - length :, i]))
            for i, (episode, length) in enumerate(zip(state["episode"], state["length"], strict=True))
            if length <= len(actions)
        }
        self._ahead("replay", again)
        lines = []
        for i, env in enumerate(self._seeded):
            episode, length, kept = state["episode"][i], state["length"][i], i in again
            last = env.replay(*again[i]) if kept else None
            same = last is not None and np.asarray(last, obs.dtype).tobytes() == obs[i].tobytes()
            if not same or env.total != state["return"][i]:
                why = "could not be brought back" if kept else f"had played more than the {LONGEST:,} that are kept"
                lines.append(
                    f"not exact: {length} steps into episode {episode}, environment {i} {why}; "
                    f"episode {episode + 1} begins instead"
                )
                obs[i] = env.reset(episode + 1)
        self._begin(obs)
        return lines

    def _ahead(self, method: str, given: dict[int, tuple[Any, ...]]) -> None:
        """Let environments apart begin, all at once, with what they will be asked for one after the other."""
        for i in given if self._apart else ():
            cast(Any, self._seeded[i]).ask(method, *given[i])

    def _begin(self, obs: np.ndarray) -> None:
        self.obs = torch.from_numpy(obs)
        self.first = torch.tensor([env.length == 0 for env in self._seeded])
        self.active = torch.ones(self.num_envs, dtype=torch.bool)
        self._forget()

    def _forget(self) -> None:
        """Keep no more actions than the running episodes need to be played again, but for those that are too long."""
        needed = max((env.length for env in self._seeded if env.length <= LONGEST), default=0)
        del self._actions[: len(self._actions) - needed * self._blank_action.nbytes]

    def _let_go(self) -> None:
        """Forget the actions of episodes that have become too long, and say it."""
        for env in self._seeded:
            if env.length == LONGEST + 1 and self._auto_reset:  # others are never saved
                print(
                    f"{env}: a longer episode cannot be played again, so a run resumed in it begins the next episode",
                    file=sys.stderr,
                )
        self._forget()

    def _after(self, ended: list[int]) -> None:
        """Start the next episode where one has ended, or let the environment rest."""
        if not self._auto_reset:
            self.active = torch.tensor([env.playing for env in self._seeded])
            for i in ended:
                self._seeded[i].look()
            return
        obs = self.obs.numpy().copy()
        self._ahead("reset", {i: (self._seeded[i].episode + 1,) for i in ended})
        for i in ended:
            obs[i] = self._seeded[i].reset(self._seeded[i].episode + 1)
        self._begin(obs)


def probe_continuity(env: EnvConfig) -> tuple[bool, str]:
    """Whether each episode needs a new environment to be repeatable, and how exactly a run goes on; or RunFailed."""
    _, found = examine(env.model_dump_json())
    if isinstance(found, str):
        raise RunFailed(found)
    return found


@functools.cache  # once for the check before a run and the run itself, and for all jobs of a sweep
def examine(env_json: str) -> tuple[Spec, tuple[bool, str] | str]:
    """The spec of an environment, from its config as JSON, and its continuity, or why its first episodes fail.

    UserError if two of it cannot be made and closed.
    """
    env = EnvConfig.model_validate_json(env_json)
    made: list[SeededEnv] = []
    try:
        with _global_streams_kept():
            for _ in range(2):
                made.append(SeededEnv(env, (0, "probe", 0)))
            try:
                return made[0].spec, _continuity(*made)
            except RunFailed as error:
                return made[0].spec, str(error)
    finally:
        for each in made:
            each.close(lambda error: UserError(f"env={env.id} cannot be closed: {one_line(error)}"))


def _continuity(first: SeededEnv, second: SeededEnv) -> tuple[bool, str]:
    """Whether one random episode comes out bit for bit the same in two new environments and after every reset."""
    reference = _play(first)
    if reason := normalises(first.env):  # its statistics may come with the first observation
        raise UserError(f"env={first.config.id} {reason}")
    if all(_play(second) == reference for _ in range(PROBE_RESETS)):
        return False, "exact continuation by replaying the running episode"
    second.rebuild = True
    if all(_play(second) == reference for _ in range(PROBE_RESETS)):
        return True, "exact continuation by replay, in a new environment for every episode (reset() leaves traces)"
    return False, "not deterministic: a run resumes at episode boundaries only, not exactly"


def _play(env: SeededEnv) -> list[Any]:
    """All that an episode of random actions gives, in the environment's own precision."""
    actions = copy.deepcopy(env.env.action_space)  # whose stream may be a part of the environment
    actions.seed(0)
    env.reset(0)
    trace: list[Any] = [array_of(env.env.observation_space, env.given).tobytes()]
    while env.playing and env.length < PROBE_STEPS:
        trace.append((*env.step(actions.sample())[1:], env.playing))
        trace.append(array_of(env.env.observation_space, env.given).tobytes())
    return trace


@contextmanager
def _global_streams_kept() -> Iterator[None]:
    """Leave the process-wide generators as they were, which careless environments draw from."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(python)
    np.random.set_state(numpy)
