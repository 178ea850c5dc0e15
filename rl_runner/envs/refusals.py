"""Environments that the runner cannot work with, each with what to do about it."""

import re
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rl_runner.envs.convert import flat

ESTIMATES = re.compile(r"running.?(mean|stat|norm)", re.IGNORECASE)  # names of classes that estimate mean and variance
FROZEN = ("update_running_mean", "training")  # False in a normaliser of Gymnasium or Stable-Baselines3 that only scales


def refusal(env: gym.Env, frame_stack: int) -> str | None:
    """Why not to train in an environment, as a sentence that lacks its id; None if nothing is in the way."""
    observation, action = env.observation_space, env.action_space
    if unreadable := _unreadable(observation, ""):
        parts = getattr(observation, "spaces", None)
        rest = [key for key in parts if not _unreadable(parts[key], "")] if isinstance(parts, dict) else []
        how = f"in gymnasium.wrappers.FilterObservation(env, {rest})" if rest else "so that it observes a Box"
        return f"observes {', '.join(unreadable)}, no array of one size: register it wrapped {how}"
    shape = flat(observation).shape or ()
    if 0 in shape:
        return f"observes nothing, an array of shape {shape}: wrap it so that it observes something"
    if frame_stack > 1 and isinstance(observation, spaces.Discrete):
        return f"observes a number, and env.frame_stack={frame_stack} stacks arrays: use 1"
    if not isinstance(action, (spaces.Discrete, spaces.Box)):
        return f"acts by {_kind(action)}; only Discrete and Box actions are supported"
    if 0 in (action.shape or ()):
        return f"acts by a Box of shape {action.shape}, which leaves nothing to choose"
    if isinstance(action, spaces.Box) and not _bounded(action):
        return "has unbounded actions; wrap it so that every action has finite bounds"
    return normalises(env)


def normalises(env: gym.Env) -> str | None:
    """Why not to train in an environment that learns while it runs, in the same words."""
    part = _learner(env)
    return part and (
        f"normalises by running statistics ({part}), which checkpoints and further instances do not share; the runner "
        "has no normalisation of its own yet: scale by constants, or freeze the statistics (update_running_mean=False)"
    )


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


def _bounded(space: spaces.Box) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(space.high.astype(np.float32) - space.low.astype(np.float32)).all())


def _learner(env: gym.Env) -> str | None:
    """The class in a chain of wrappers that holds running statistics and goes on with them."""
    waiting: list[Any] = [env]
    seen = set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        held = list(getattr(part, "__dict__", {}).values())
        held += [each for value in held if isinstance(value, (dict, list, tuple)) for each in _elements(value)]
        frozen = any(getattr(part, name, True) is False for name in FROZEN)
        if not frozen and any(_estimates(part, value) for value in [*held, part]):
            return type(part).__name__
        waiting += [value for value in held if _steps(value)]
    return None


def _elements(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)[:100]


def _estimates(owner: Any, value: Any) -> bool:
    """By the name of the class, or by mean, variance and count in what calls itself a normaliser."""
    if any(ESTIMATES.search(kind.__name__) for kind in type(value).__mro__):
        return True
    moments = getattr(value, "__dict__", {}).keys() >= {"mean", "var", "count"}
    return moments and "normal" in type(owner).__name__.lower()


def _steps(value: Any) -> bool:
    return all(callable(getattr(type(value), name, None)) for name in ("reset", "step"))
