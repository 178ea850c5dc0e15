"""Environments that misbehave: each is trained right, or ends in one line, with the right exit code, nothing lost."""

import os
import random
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from gymnasium.wrappers.utils import RunningMeanStd

from rl_runner.__main__ import main
from rl_runner.config.schema import EnvConfig
from rl_runner.envs import Envs, examine, process
from rl_runner.errors import RunFailed, UserError, report_error
from rl_runner.persistence import CHECKPOINT, STATUS, read_json
from rl_runner.persistence.checkpoint import newest
from rl_runner.replay.uniform import UniformReplay
from rl_runner.run import run

LENGTH = 5  # steps of an episode
LATE = 43  # steps that an environment behaves: one that a probe plays makes fewer, the one that trains makes 60
SAVED = 40  # the step of the last checkpoint before that
WORDS = ("tuned=none", "network.hidden=[8]", "total_steps=60", "learning_starts=10", "algo.batch_size=8", "device=cpu",
         "final_eval_episodes=1", "eval_episodes=1", "eval_every=0", "checkpoint_every=20", "replay.capacity=100",
         "log_every=60")  # fmt: skip
REAL = spaces.Box(-9, 9, (3,))
BYTES = spaces.Box(0, 255, (2, 2), np.uint8)
SIX = spaces.Discrete(6)
MIXED = spaces.Dict({"a": spaces.Box(-9, 9, (1,)), "b": spaces.Box(-9, 9, (2,)), "c": SIX})


def real(k: int) -> np.ndarray:
    return np.array([k, k / 4, -1], np.float32)


def octets(k: int) -> np.ndarray:
    return np.array([[k, 50 * k], [255, 0]], np.uint8)


def mixed(k: int) -> dict[str, Any]:
    return {"a": np.full(1, k / 2, np.float32), "b": np.array([k, -k], np.float32), "c": k}


def mixed_seen(k: int) -> np.ndarray:
    return np.concatenate([[k / 2, k, -k], np.eye(6)[k]]).astype(np.float32)


@dataclass
class Row:
    """What is odd about an environment, and what must come of it; `k` is the number of steps in an episode."""

    says: str | None = None  # the one line, a pattern; None: it trains, and what is stored is `seen`
    code: int = 1
    space: Any = field(default_factory=lambda: REAL)
    action: Any = field(default_factory=lambda: spaces.Discrete(2))
    seen: Callable[[int], Any] = real  # what the agent must see; what is given while nothing is odd
    plain: Callable[[int], Any] | None = None  # what is given while nothing is odd, where that is another thing
    obs: Callable[[int], Any] | None = None  # what is given by `step`; by `reset` if `in_reset`
    in_reset: bool = False
    reward: Any = 1.0
    ended: Any = None  # given as `terminated` when it is True; as False where the odd thing stands for no end
    result: Callable[[tuple[Any, ...]], Any] = lambda result: result
    start: Callable[[tuple[Any, ...]], Any] = lambda result: result
    do: dict[str, Callable[[], Any]] = field(default_factory=dict)  # what happens in "make", "reset", "step", "close"
    wrap: Callable[[gym.Env], gym.Env] = lambda env: env
    words: tuple[str, ...] = ()
    traces: bool = False  # reset leaves some, so that every episode gets a new environment: the 19th in all at step 45
    early: bool = False  # odd from the first step on, so that no checkpoint can be there
    stack: int = 1
    warns: str | None = None


def raising(error: BaseException) -> Callable[[], Any]:
    def act() -> None:
        raise error

    return act


class Silent(Exception):  # noqa: N818
    def __str__(self) -> str:
        raise ValueError("no words")


class Unheard(BaseException):
    pass


class Mission(spaces.Space):
    """As MiniGrid's: a space that Gymnasium knows nothing of."""


class Odd(gym.Env):
    """A corridor; its row says what is odd about it, from the start or from step LATE on."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    made: list["Odd"] = []  # noqa: RUF012

    def __init__(self, name: str, render_mode: str | None = None):
        self.row, self.render_mode = ROWS[name], render_mode
        Odd.made.append(self)
        self.observation_space, self.action_space = self.row.space, self.row.action
        if callable(self.row.space):
            self.observation_space = self.row.space()
        if callable(self.row.action):
            self.action_space = self.row.action()
        self.steps = self.k = self.resets = 0
        self.actions: list[Any] = []
        self.happen("make")

    @property
    def odd(self) -> bool:
        return self.row.early or self.row.says is None or self.steps >= LATE

    def happen(self, where: str) -> None:
        if where in self.row.do and (where in ("make", "close") or self.odd):
            self.row.do[where]()

    def observe(self, resetting: bool) -> Any:
        odd = self.row.obs if self.odd and (self.row.says is None or resetting == self.row.in_reset) else None
        given = (odd or self.row.plain or self.row.seen)(self.k)
        return given + 1e-12 * self.resets if self.row.traces else given

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.k, self.resets = 0, self.resets + 1
        self.happen("reset")
        result = (self.observe(True), {})
        return self.row.start(result) if self.odd else result

    def step(self, action: Any) -> Any:
        self.steps, self.k = self.steps + 1, self.k + 1
        self.actions.append(action)
        self.happen("step")
        reward, ended = 1.0, self.k == LENGTH
        if self.odd:
            reward = self.row.reward
            ended = self.row.ended(ended) if callable(self.row.ended) else ended
        result = (self.observe(False), reward, ended, False, {})
        return self.row.result(result) if self.odd else result

    def render(self) -> Any:
        self.happen("render")
        return np.zeros((16, 16, 3), np.uint8)

    def close(self) -> None:
        self.happen("close")


def number(n: int, error: BaseException) -> Callable[[], Any]:
    """Something that is raised the n-th time."""
    calls = 0

    def act() -> None:
        nonlocal calls
        calls += 1
        if calls == n:
            raise error

    return act


class Alone:
    """A port that one environment holds; whether `make` or the first `reset` binds it."""

    def __init__(self) -> None:
        self.bound = 0

    def bind(self, most: int = 1) -> None:
        if self.bound >= most:
            raise OSError(98, "Address already in use")
        self.bound += 1

    def free(self) -> None:
        self.bound -= 1


def alone(most: int = 1) -> dict[str, Callable[[], Any]]:
    port = Alone()
    return {"make": lambda: port.bind(most), "close": port.free}


class Pocket(gym.Wrapper):
    """Holds running statistics where nobody looks."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.rms = {"image": RunningMeanStd(shape=())}


class Lazy(gym.Wrapper):
    """Makes its statistics in the first reset."""

    def reset(self, **kwargs: Any) -> Any:
        self.rms = RunningMeanStd(shape=())
        return self.env.reset(**kwargs)


class MyNormaliser(gym.Wrapper):
    class Moments:
        def __init__(self) -> None:
            self.mean, self.var, self.count = 0.0, 1.0, 0

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.moments = MyNormaliser.Moments()


def frozen(env: gym.Env) -> gym.Env:
    still = NormalizeObservation(env)
    still.update_running_mean = False
    return still


def deep() -> None:
    deep()


def leave(where: str) -> dict[str, Callable[[], Any]]:
    return {where: lambda: os.chdir("/")}


def warn_as_errors() -> None:
    warnings.simplefilter("error")


def broken_space() -> Any:
    raise ZeroDivisionError("no space")


ODD = r"Odd-v0"
AT = rf"\({ODD}, environment 0, episode 8, step [0-5]\)"
ROWS: dict[str, Row] = {
    # Shapes and kinds of observations.
    "too short": Row(rf"gave an observation of shape \(1,\) instead of \(3,\) {AT}", obs=lambda k: real(k)[:1]),
    "too long": Row(rf"of shape \(4,\) instead of \(3,\) {AT}", obs=lambda k: np.zeros(4, np.float32)),
    "no array": Row(rf"of shape \(\) instead of \(3,\) {AT}", obs=lambda k: 0.5),
    "column": Row(rf"of shape \(3, 1\) instead of \(3,\) {AT}", obs=lambda k: real(k)[:, None]),
    "nothing": Row(rf"gave an observation None, which is no array of plain numbers {AT}", obs=lambda k: None),
    "words": Row(rf"gave an observation 'abc', which is no array of plain numbers {AT}", obs=lambda k: "abc"),
    "objects": Row(r"no array of plain numbers", obs=lambda k: np.array([1.0, None, 2.0], object)),
    "complex": Row(r"no array of plain numbers", obs=lambda k: real(k) + 1j),
    "ragged": Row(r"gave an observation \[1.0, \[2.0\], 3.0\], which is no array", obs=lambda k: [1.0, [2.0], 3.0]),
    "masked": Row(r"no array of plain numbers", obs=lambda k: np.ma.masked_array(real(k), mask=[1, 0, 0])),
    "not a number": Row(rf"gave NaN in an observation {AT}", obs=lambda k: real(k) * np.float32("nan")),
    "infinite": Row(rf"gave infinity in an observation {AT}", obs=lambda k: real(k) + np.float32("inf")),
    "too large": Row(r"gave 1e\+39 in an observation, which float32 cannot hold", obs=lambda k: [1e39, 0.0, 0.0]),
    "stacked": Row(r"of shape \(1,\) instead of \(3,\)", obs=lambda k: real(k)[:1], stack=2),
    "list": Row(obs=lambda k: real(k).tolist()),
    "tuple": Row(obs=lambda k: tuple(real(k))),
    "float64": Row(obs=lambda k: real(k).astype(np.float64)),
    "float16": Row(obs=lambda k: real(k).astype(np.float16)),
    "whole": Row(obs=lambda k: [k, 0, -1], seen=lambda k: np.array([k, 0, -1], np.float32)),
    "truth values": Row(obs=lambda k: real(k) > 0, seen=lambda k: np.array([k > 0, k > 0, 0], np.float32)),
    "tensor": Row(obs=lambda k: torch.from_numpy(real(k))),
    "strided": Row(obs=lambda k: np.repeat(real(k), 2)[::2]),
    "big endian": Row(obs=lambda k: real(k).astype(">f4")),
    # Whole numbers.
    "grey": Row(r"with 0.5, where its space has whole numbers", space=BYTES, seen=octets,
                obs=lambda k: octets(k) * 0 + 0.5),
    "byte 256": Row(r"with 256, beyond the range", space=BYTES, seen=octets, obs=lambda k: octets(k).astype(int) + 1),
    "byte -1": Row(r"with -1, beyond the range", space=BYTES, seen=octets, obs=lambda k: [[-1, 0], [0, 0]]),
    "byte NaN": Row(r"with nan, where its space has whole numbers", space=BYTES, seen=octets,
                    obs=lambda k: octets(k) * np.nan),
    "bytes as floats": Row(space=BYTES, seen=octets, obs=lambda k: octets(k).astype(np.float64)),
    "bytes as ints": Row(space=BYTES, seen=octets, obs=lambda k: octets(k).astype(int).tolist()),
    "narrow bytes": Row(r"with 10, beyond the range", space=spaces.Box(0, 9, (2,), np.uint8),
                        seen=lambda k: np.full(2, k, np.uint8), obs=lambda k: np.array([10, 0], np.uint8)),
    "narrow ints": Row(r"with -2, beyond the range", space=spaces.Box(-1, 9, (2,), np.int32),
                       seen=lambda k: np.full(2, k, np.float32), plain=lambda k: np.full(2, k, np.int32),
                       obs=lambda k: np.array([-2, 0], np.int32)),
    "bits": Row(r"with 2, beyond the range", space=spaces.Box(0, 1, (2,), bool),
                seen=lambda k: np.array([k > 2, 0], np.float32), plain=lambda k: np.array([k > 2, 0], bool),
                obs=lambda k: [2, 0]),
    # Numbered states.
    "state -1": Row(rf"gave an observation with -1, beyond the range 0 to 5 of its space {AT}", space=SIX,
                    seen=lambda k: k, obs=lambda k: -1),
    "state n": Row(r"with 6, beyond the range 0 to 5", space=SIX, seen=lambda k: k, obs=lambda k: np.int64(6)),
    "state 2.5": Row(r"with 2.5, where its space has whole numbers", space=SIX, seen=lambda k: k, obs=lambda k: 2.5),
    "state None": Row(r"no array of plain numbers", space=SIX, seen=lambda k: k, obs=lambda k: None),
    "state '3'": Row(r"no array of plain numbers", space=SIX, seen=lambda k: k, obs=lambda k: "3"),
    "two states": Row(r"of shape \(2,\) instead of \(\)", space=SIX, seen=lambda k: k, obs=lambda k: [k, k]),
    "shifted": Row(r"with 6, beyond the range 1 to 5", space=spaces.Discrete(5, start=1), seen=lambda k: k,
                   plain=lambda k: max(k, 1), obs=lambda k: 6),
    "state int64": Row(space=SIX, seen=lambda k: k, obs=lambda k: np.int64(k)),
    "state 2.0": Row(space=SIX, seen=lambda k: k, obs=lambda k: float(k)),
    "state (1,)": Row(space=SIX, seen=lambda k: k, obs=lambda k: np.array([k])),
    "state ()": Row(space=SIX, seen=lambda k: k, obs=lambda k: np.array(k, np.uint8)),
    "state bool": Row(space=spaces.Discrete(2), seen=lambda k: int(k > 2), obs=lambda k: np.bool_(k > 2)),
    "state from -2": Row(space=spaces.Discrete(6, start=-2), seen=lambda k: k, obs=lambda k: k - 2),
    # Spaces that are flattened.
    "digit n": Row(r"with 3, beyond the range", space=spaces.MultiDiscrete([3, 6]), plain=lambda k: np.array([0, k]),
                   obs=lambda k: np.array([3, 0])),
    "digit -1": Row(r"with -1, beyond the range", space=spaces.MultiDiscrete([3, 6]),
                    plain=lambda k: np.array([0, k]), obs=lambda k: np.array([0, -1])),
    "bit 2": Row(r"with 2, beyond the range", space=spaces.MultiBinary(3), plain=lambda k: np.array([1, 0, 1]),
                 obs=lambda k: np.array([1, 0, 2])),
    "digits": Row(space=spaces.MultiDiscrete([3, 6]), obs=lambda k: (2, float(k)),
                  seen=lambda k: np.concatenate([[0, 0, 1], np.eye(6)[k]]).astype(np.float32)),
    "dict": Row(space=MIXED, obs=mixed, seen=mixed_seen),
    "dict of lists": Row(space=MIXED, seen=mixed_seen, obs=lambda k: {"c": float(k), "b": [k, -k], "a": (k / 2,)}),
    "lost key": Row(rf"gave an observation without 'b' {AT}", space=MIXED, plain=mixed,
                    obs=lambda k: {"a": [0.0], "c": 1}),
    "swapped": Row(r"gave an observation\['a'\] of shape \(2,\) instead of \(1,\)", space=MIXED, plain=mixed,
                   obs=lambda k: {"a": [0.0, 0.0], "b": [0.0], "c": 1}),
    "part -1": Row(r"an observation\['c'\] with -1, beyond the range 0 to 5", space=MIXED, plain=mixed,
                   obs=lambda k: mixed(k) | {"c": -1}),
    "part NaN": Row(r"NaN in an observation", space=MIXED, plain=mixed, obs=lambda k: mixed(k) | {"a": [np.nan]}),
    "no dict": Row(r"which is not in its space, a Dict", space=MIXED, plain=mixed, obs=lambda k: mixed_seen(k)),
    "tuple short": Row(r"not in its space, a Tuple", space=spaces.Tuple([SIX, SIX]), plain=lambda k: (k, k),
                       obs=lambda k: (k,)),
    "no text": Row(r"an observation\['t'\] 7, which is not in its space, a Text",
                   space=spaces.Dict({"t": spaces.Text(4), "k": SIX}), plain=lambda k: {"t": "ab", "k": k},
                   obs=lambda k: {"t": 7, "k": k}),
    # What reset gives.
    "reset too short": Row(rf"of shape \(2,\) instead of \(3,\) \({ODD}, environment 0, episode 9, step 0\)",
                           in_reset=True, obs=lambda k: real(k)[:2]),
    "reset NaN": Row(r"NaN in an observation", in_reset=True, obs=lambda k: real(k) * np.float32("nan")),
    "reset -1": Row(r"with -1, beyond the range 0 to 5", space=SIX, seen=lambda k: k, in_reset=True, obs=lambda k: -1),
    "reset grey": Row(r"with 0.5, where", space=BYTES, seen=octets, in_reset=True, obs=lambda k: octets(k) * 0 + 0.5),
    "reset alone": Row(r"gave a ndarray instead of \(obs, info\)", start=lambda result: result[0]),
    "reset None": Row(r"gave a NoneType instead of \(obs, info\)", start=lambda result: None),
    "reset three": Row(r"gave 3 values instead of \(obs, info\)", start=lambda result: (*result, 1)),
    # What step gives.
    "old step": Row(rf"gave 4 values instead of \(obs, reward, terminated, truncated, info\) {AT}",
                    result=lambda result: (*result[:3], {})),
    "no step": Row(r"gave a NoneType instead of \(obs, reward,", result=lambda result: None),
    "keys": Row(r"gave a dict instead of", result=lambda result: dict(zip("orxti", result, strict=True))),
    "as a list": Row(result=list),
    "reward None": Row(rf"gave the reward None, which is no real number {AT}", reward=None),
    "reward '1'": Row(r"gave the reward '1.0', which is no real number", reward="1.0"),
    "reward 1j": Row(r"gave the reward 1j", reward=1j),
    "reward NaN": Row(rf"gave the reward nan {AT}", reward=float("nan")),
    "reward inf": Row(r"gave the reward -inf", reward=np.float64("-inf")),
    "reward 1e39": Row(r"gave the reward 1e\+39", reward=1e39),
    "reward 10^400": Row(r"gave the reward 1000.*no real number", reward=10**400),
    "two rewards": Row(r"gave the reward array\(\[1., 2.\]\), which is no real number", reward=np.array([1.0, 2.0])),
    "reward (1,)": Row(reward=np.array([1.0])),
    "reward ()": Row(reward=np.array(1)),
    "reward True": Row(reward=True),
    "reward float32": Row(reward=np.float32(1)),
    "reward tensor": Row(reward=torch.ones((), requires_grad=True)),
    "flag None": Row(r"gave as terminated None, which is no real number", ended=lambda ended: None),
    "flag 'False'": Row(r"gave as terminated 'False'", ended=lambda ended: str(ended)),
    "two flags": Row(r"gave as terminated array\(\[ True, False\]\)", ended=lambda ended: np.array([True, False])),
    "flag 2": Row(r"gave as terminated 2, which is neither true nor false", ended=lambda ended: 2),
    "flag NaN": Row(r"gave as terminated nan", ended=lambda ended: float("nan")),
    "truncated 'no'": Row(r"gave as truncated 'no'", result=lambda result: (*result[:3], "no", {})),
    "flag bool_": Row(ended=np.bool_),
    "flag 1": Row(ended=int),
    "flag (1,)": Row(ended=lambda ended: np.array([ended])),
    # What is raised.
    "exit 0": Row(rf"raised SystemExit: 0 in step\(\) {AT}", do={"step": lambda: sys.exit(0)}),
    "exit": Row(r"raised SystemExit in step\(\)", do={"step": raising(SystemExit())}),
    "Ctrl-C": Row(r"raised KeyboardInterrupt in step\(\)", do={"step": raising(KeyboardInterrupt())}),
    "memory": Row(r"raised MemoryError in step\(\)", do={"step": raising(MemoryError())}),
    "recursion": Row(r"raised RecursionError: maximum recursion", do={"step": deep}),
    "silent": Row(rf"raised Silent in step\(\) {AT}", do={"step": raising(Silent())}),
    "unheard": Row(r"raised Unheard: odd in step\(\)", do={"step": raising(Unheard("odd"))}),
    "iteration": Row(r"raised StopIteration in step\(\)", do={"step": raising(StopIteration())}),
    "lines": Row(r"raised ValueError: one two in step\(\)", do={"step": raising(ValueError("one\n  two\n"))}),
    "without words": Row(r"raised NotImplementedError in step\(\)", do={"step": raising(NotImplementedError())}),
    "long": Row(r"raised ValueError: x{400,500} in step\(\)", do={"step": raising(ValueError("x" * 10**6))}),
    "exit in reset": Row(r"raised SystemExit: 3 in reset\(\)", do={"reset": lambda: sys.exit(3)}),
    "Ctrl-C in reset": Row(r"raised KeyboardInterrupt in reset\(\)", do={"reset": raising(KeyboardInterrupt())}),
    "iteration in reset": Row(r"raised StopIteration in reset\(\)", do={"reset": raising(StopIteration())}),
    "never resets": Row(rf"^{ODD} raised ValueError: no in reset\(\) \({ODD}, environment 0, episode 0, step 0\)$",
                        do={"reset": raising(ValueError("no"))}, early=True),
    # What is known before the run starts.
    "exit in make": Row(rf"^env={ODD} cannot be made: SystemExit: 0$", 2, do={"make": lambda: sys.exit(0)}),
    "raises in make": Row(r"cannot be made: Unheard: odd$", 2, do={"make": raising(Unheard("odd"))}),
    "breaks in close": Row(rf"^env={ODD} cannot be closed: SystemExit: 4$", 2, do={"close": lambda: sys.exit(4)}),
    "no space": Row(r"observes a NoneType, which is no space of Gymnasium's", 2, space=None),
    "broken space": Row(r"cannot be made: ZeroDivisionError: no space", 2, space=broken_space),
    "empty": Row(r"observes nothing, an array of shape \(0,\)", 2, space=spaces.Box(-1, 1, (0,))),
    "sequence": Row(r"observes a Sequence, no array of one size", 2, space=spaces.Sequence(SIX)),
    "graph": Row(r"observes a Graph, no array", 2, space=spaces.Graph(spaces.Box(0, 1, (2,)), None)),
    "mission": Row(r"observes \['mission'\] \(a Mission\), no array of one size: add env.observation_keys="
                   r"\[direction,image\]$", 2,
                   space=spaces.Dict({"image": BYTES, "direction": SIX, "mission": Mission()})),
    "deep mission": Row(r"observes \['x'\]\[1\] \(a Mission\)", 2,
                        space=spaces.Dict({"x": spaces.Tuple([SIX, Mission()])})),
    "acts by digits": Row(r"acts by a MultiDiscrete of 10,001 combinations, and up to 10,000 are numbered: offer "
                          r"fewer, by a wrapper of yours in env.wrappers", 2, action=spaces.MultiDiscrete([73, 137])),
    "acts by bits": Row(r"acts by a MultiBinary of 16,384 combinations", 2, action=spaces.MultiBinary((7, 2))),
    "acts by a dict": Row(r"acts by a Dict; Box, Discrete, MultiDiscrete and MultiBinary actions", 2,
                          action=spaces.Dict({"a": SIX})),
    "acts by nothing": Row(r"acts by a NoneType, which is no space", 2, action=None),
    "unbounded": Row(r"has unbounded actions", 2, action=spaces.Box(-np.inf, 1, (2,)), words=("algo=sac",)),
    "no action": Row(r"shape \(0,\), which leaves nothing to choose", 2, action=spaces.Box(-1, 1, (0,)),
                     words=("algo=sac",)),
    "alone": Row(r"cannot be made: OSError: \[Errno 98\] Address already in use, though it could be made once; a run "
                 r"needs several at once: two for a probe, then num_envs to train", 2, do=alone()),
    "normalised": Row(r"normalises by running statistics \(NormalizeObservation\)", 2, wrap=NormalizeObservation),
    "normalised reward": Row(r"normalises by running statistics \(NormalizeReward\)", 2, wrap=NormalizeReward),
    "normalised inside": Row(r"running statistics \(NormalizeObservation\)", 2,
                             wrap=lambda env: gym.wrappers.TransformReward(NormalizeObservation(env), float)),
    "pocket": Row(r"running statistics \(Pocket\).*write normalize_observations=true or normalize_rewards=5", 2,
                  wrap=Pocket),
    "own normaliser": Row(r"running statistics \(MyNormaliser\)", 2, wrap=MyNormaliser),
    "second alone": Row(r"raised OSError: \[Errno 98\] in use in reset\(\) .*; a run needs several at once", early=True,
                        do={"reset": number(2, OSError(98, "in use"))}),
    "made no more": Row(rf"^env={ODD} cannot be made: SystemExit: 0 \({ODD}, environment 0, episode 8, step 5\)$",
                        do={"make": number(19, SystemExit(0))}, traces=True),
    "closed no more": Row(r"raised SystemExit: 0 in close\(\)", do={"close": number(17, SystemExit(0))}, traces=True),
    # Known only when the parts of a run are made.
    "lazy": Row(r"running statistics \(Lazy\)", 2, wrap=Lazy),
    "no third": Row(r"cannot be made: OSError: .*; a run needs several at once", 2, do=alone(2), words=("num_envs=3",)),
    "other each time": Row(r"different spaces each time that it is made", 2, words=("num_envs=2",),
                           action=lambda: spaces.Discrete(1 + len(Odd.made))),
    # Actions.
    "fixed action": Row(action=spaces.Box(np.float32([1, -1]), np.float32([1, 1])), words=("algo=sac",)),
    "scalar action": Row(action=spaces.Box(0, 4, ()), words=("algo=sac",)),
    "square action": Row(action=spaces.Box(0, 4, (2, 2)), words=("algo=sac",)),
    "whole action": Row(action=spaces.Box(0, 4, (2,), np.int64), words=("algo=sac",)),
    "bit action": Row(action=spaces.Box(0, 1, (2,), bool), words=("algo=sac",)),
    "one action": Row(action=spaces.Discrete(1)),
    "shifted action": Row(action=spaces.Discrete(3, start=7)),
    # What is done to the process.
    "leaves in make": Row(do=leave("make"), warns="changes the working directory"),
    "leaves in reset": Row(do=leave("reset"), warns="changes the working directory"),
    "leaves in step": Row(do=leave("step"), warns="changes the working directory"),
    "handles SIGINT": Row(do={"reset": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)},
                          warns="changes signal handlers"),
    "handles SIGTERM": Row(do={"step": lambda: signal.signal(signal.SIGTERM, lambda *_: None)},
                           warns="changes signal handlers"),
    "double": Row(do={"step": lambda: torch.set_default_dtype(torch.float64)}, warns="torch's default dtype"),
    "double in make": Row(do={"make": lambda: torch.set_default_dtype(torch.float64)}, warns="torch's default dtype"),
    "no gradients": Row(do={"step": lambda: torch.set_grad_enabled(False)}, warns="torch's grad mode"),
    "no gradients in reset": Row(do={"reset": lambda: torch.set_grad_enabled(False)}, warns="torch's grad mode"),
    "threads": Row(do={"step": lambda: torch.set_num_threads(2)}, warns="torch's number of threads"),
    "other device": Row(do={"reset": lambda: torch.set_default_device("meta")}, warns="torch's default device"),
    "warnings": Row(do={"reset": warn_as_errors}, warns="which warnings are errors"),
    "floating point": Row(do={"reset": lambda: np.seterr(all="raise")}, warns="NumPy's handling"),
    "recursion limit": Row(do={"reset": lambda: sys.setrecursionlimit(5000)}, warns="the recursion limit"),
    "mute": Row(do={"step": lambda: setattr(sys, "stdout", None)}, warns="sys.stdout"),
    "reseeds": Row(do={"step": lambda: (torch.manual_seed(1), np.random.seed(1), random.seed(1))}),
    "frozen": Row(wrap=frozen, seen=lambda k: real(k) / np.sqrt(np.float32(1 + 1e-8)), plain=real),
}  # fmt: skip


def make_odd(name: str, render_mode: str | None = None) -> gym.Env:
    return ROWS[name].wrap(Odd(name, render_mode))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gym.register("Odd-v0", make_odd)
    yield
    del gym.registry["Odd-v0"]


@pytest.fixture(scope="module")
def configs(configure: Any) -> Callable[..., Any]:
    """The config of a row, composed once for each choice of words."""
    composed: dict[tuple[str, ...], Any] = {}

    def config(name: str) -> Any:
        row = ROWS[name]
        words = row.words if "algo=sac" in row.words else ("algo=dqn", *row.words)
        if words not in composed:
            composed[words] = configure("env=CartPole-v1", *WORDS, *words)
        env = EnvConfig(id="Odd-v0", kwargs={"name": name}, frame_stack=row.stack)
        return composed[words].model_copy(update={"env": env})

    return config


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that was given to the replay."""
    seen: list[Any] = []
    add = UniformReplay.add

    def spy(self: Any, *transition: torch.Tensor) -> None:
        seen.append([part.clone() for part in transition])
        add(self, *transition)

    monkeypatch.setattr(UniformReplay, "add", spy)
    return seen


def process_state() -> list[Any]:
    return [process.values_of(process.CHEAP)[:3], process.values_of(process.LASTING)]


@pytest.mark.parametrize("name", ROWS)
def test_right_or_one_line(
    name: str, configs: Any, stored: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    row, directory = ROWS[name], Path("run")
    Odd.made.clear()
    monkeypatch.setattr(process, "_said", set())
    monkeypatch.chdir(tmp_path)
    before = process_state()
    code = 0
    try:
        examine(configs(name).env.model_dump_json())
        run(configs(name), directory)
    except (RunFailed, UserError) as error:
        code = report_error(error)
    lines = capsys.readouterr().err.splitlines()
    warned = [line for line in lines if line.startswith("warning: Odd-v0 changes ")]
    lines = [line for line in lines if line not in warned]
    if row.says is None:
        assert (code, lines) == (0, [])
        check_transitions(row, stored)
        assert process_state() == before or name == "double in make"
    else:
        assert code == row.code
        assert len(lines) == 1
        assert re.search(row.says, lines[0]), lines[0]
        check_kept(row, tmp_path / directory, lines[0])
    assert [line for line in warned if row.warns and row.warns in line] == warned
    assert len(warned) == (row.warns is not None)


def check_transitions(row: Row, stored: list[Any]) -> None:
    """The 60 transitions that were stored are the true ones, and the actions lay in their space."""
    assert len(stored) == 60
    for t, (obs, _, reward, terminated, truncated, next_obs) in enumerate(stored):
        k = t % LENGTH
        for given, expected in ((obs, row.seen(k)), (next_obs, row.seen(k + 1))):
            np.testing.assert_array_equal(given[0].numpy(), expected)
        assert (reward.item(), terminated.item(), truncated.item()) == (1.0, k + 1 == LENGTH, False)
    (trained,) = [env for env in Odd.made if env.steps == 60]
    assert all(row.action.contains(action) for action in trained.actions)


def check_kept(row: Row, directory: Path, line: str) -> None:
    saved = newest(directory / CHECKPOINT)
    if row.code == 2 or row.early:
        assert saved is None
        assert {path.name for path in directory.glob("*")} <= {".lock"}
    else:
        assert saved is not None
        assert saved.step == SAVED
        assert (read_json(directory / STATUS)["state"], read_json(directory / STATUS)["error"]) == ("failed", line)


def words(name: str) -> list[str]:
    return ["algo=dqn", "env=Odd-v0", f"+env.kwargs.name={name!r}", *WORDS, "hydra.run.dir=run"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., tuple[int, list[str]]]:
    """A command's exit code, and what it prints to stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rl-runner"])

    def run(*words: str) -> tuple[int, list[str]]:
        try:
            code = main(words)
        except SystemExit as error:  # out of Hydra
            code = error.code
        return code, capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize("name", ["exit 0", "Ctrl-C", "state -1", "old step", "never resets", "exit in make", "alone"])
def test_the_command_says_it_and_keeps_what_there_is(name: str, command: Any, tmp_path: Path) -> None:
    row = ROWS[name]
    Odd.made.clear()
    code, lines = command(*words(name))
    assert (code, len(lines)) == (row.code, 1)
    assert re.search(str(row.says), lines[0]), lines[0]
    check_kept(row, tmp_path / "run", lines[0])
    assert (tmp_path / "run").exists() == (row.code == 1)


def test_a_run_in_a_relative_directory_survives_a_change_of_directory(command: Any, tmp_path: Path) -> None:
    assert command(*words("leaves in step"))[0] == 0
    assert command("resume", "run", "total_steps=90")[0] == 0
    assert read_json(tmp_path / "run" / STATUS)["step"] == 90
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("asked", "where"),
    [("eval", "reset"), ("eval", "step"), ("export", "step"), ("eval --video", "step"), ("eval --video", "render")],
)
def test_a_saved_policy_meets_a_broken_environment(
    asked: str, where: str, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "video" in asked:
        pytest.importorskip("moviepy")
        pytest.importorskip("pygame")
    assert command(*words("list"))[0] == 0
    monkeypatch.setitem(ROWS, "list", Row("", do={where: lambda: sys.exit(0)}, early=True))
    verb, *options = asked.split()
    code, lines = command(verb, "run", *options)
    assert (code, len(lines)) == (2 if where == "render" else 1, 1)
    said = {"render": "cannot be filmed: SystemExit: 0"}.get(where, rf"raised SystemExit: 0 in {where}\(\) \(Odd-v0, ")
    assert re.search(said, lines[0]), lines[0]


def test_what_a_compiler_changes_between_two_steps_is_not_the_environments(capsys: pytest.CaptureFixture[str]) -> None:
    envs = Envs(EnvConfig(id="Pendulum-v1"), 1, seed=0)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 500)  # as Dynamo does
    try:
        for _ in range(300):
            envs.step(torch.zeros(1, 1))
        assert sys.getrecursionlimit() == before + 500
    finally:
        sys.setrecursionlimit(before)
    assert capsys.readouterr().err == ""


def test_handlers_that_a_first_signal_let_go_of_are_not_the_environments(capsys: pytest.CaptureFixture[str]) -> None:
    def on_signal(signum: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    kept = [(signum, signal.signal(signum, on_signal)) for signum in (signal.SIGTERM, signal.SIGHUP)]
    try:
        envs = Envs(EnvConfig(id="Pendulum-v1"), 1, seed=0)
        os.kill(os.getpid(), signal.SIGTERM)
        envs.reset()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert capsys.readouterr().err == ""
    finally:
        for signum, handler in kept:
            signal.signal(signum, handler)
