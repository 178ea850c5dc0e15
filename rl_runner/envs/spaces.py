"""From Gymnasium's spaces to what an agent knows: observations as numbers, actions in 0..n-1 or in [-1, 1]."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

SMALLEST = 7  # pixels on either side of an image
MOST_ACTIONS = 10_000  # of combinations of several choices that are numbered


class Wrong(Exception):  # noqa: N818 - it names what was given, not a mistake in the code
    """What an environment gave is not what its spaces promise; the message follows `gave`."""


class Image(NamedTuple):
    """An image in a Dict: its key, where it begins in the one array that the Dict becomes, its shape and bounds."""

    key: str
    start: int
    shape: tuple[int, ...]
    low: float
    high: float


@dataclass(frozen=True)
class Spec:
    """All that an agent may know of an environment."""

    obs_shape: tuple[int, ...]  # of one observation as the agent sees it, [K, *frame] when stacked; () if Discrete
    obs_dtype: torch.dtype  # float32, uint8, or int64 for Discrete observations
    num_states: int | None  # of Discrete observations
    num_actions: int | None  # of Discrete, MultiDiscrete and MultiBinary actions, which the agent numbers from 0
    action_dim: int | None  # of Box actions, flattened; the agent's lie in [-1, 1]
    frame_stack: int  # K; 1 is no stacking
    max_episode_steps: int | None
    low: float = 0.0  # the least that a uint8 observation can hold ...
    high: float = 255.0  # ... and the most
    images: tuple[Image, ...] = ()  # in a Dict, whose parts are one array here


def spec_of(env: gym.Env, frame_stack: int = 1) -> Spec:
    """What an agent may know of an environment that `make` made."""
    observation, action = env.observation_space, env.action_space
    shape, dtype = tuple(flat(observation).shape or ()), agent_dtype(observation)
    low, high = _bounds(flat(observation)) if dtype == np.uint8 else (Spec.low, Spec.high)
    return Spec(
        obs_shape=(frame_stack, *shape) if frame_stack > 1 else shape,
        obs_dtype=torch.from_numpy(np.empty(0, dtype)).dtype,
        num_states=int(observation.n) if isinstance(observation, spaces.Discrete) else None,
        num_actions=None if isinstance(action, spaces.Box) else math.prod(choices(action)),
        action_dim=int(np.prod(action.shape)) if isinstance(action, spaces.Box) else None,
        frame_stack=frame_stack,
        max_episode_steps=env.spec.max_episode_steps if env.spec else None,
        low=low,
        high=high,
        images=tuple(_images_in(observation)),
    )


def _bounds(box: Any) -> tuple[float, float]:
    low, high = float(box.low.min()), float(box.high.max())
    return low, max(high, low + 1)


def _images_in(space: gym.Space) -> Iterator[Image]:
    """The parts of a Dict that an encoder could read as an image."""
    start = 0
    for key, part in space.spaces.items() if isinstance(space, spaces.Dict) else ():
        shape = part.shape if isinstance(part, spaces.Box) and agent_dtype(part) == np.uint8 else ()
        if len(shape) in (2, 3) and sorted(shape)[-2] >= SMALLEST:  # the sides are the largest two of three, too
            yield Image(key, start, shape, *_bounds(part))
        start += spaces.flatdim(part)


def action_map(space: gym.Space) -> Callable[[np.ndarray], np.ndarray]:
    """The function from agent's actions, [B] int64 or [B, action_dim] in [-1, 1], to the environment's, [B, *shape]."""
    if isinstance(space, spaces.Discrete):
        return lambda action: action + space.start
    if not isinstance(space, spaces.Box):  # numbered like the elements of an array, the last choice counting fastest
        several: Any = space
        start = getattr(several, "start", np.zeros((), space.dtype))

        def combine(action: np.ndarray) -> np.ndarray:
            chosen = np.stack(np.unravel_index(action, choices(space)), axis=-1).reshape(len(action), *several.shape)
            return (chosen + start).astype(several.dtype)

        return combine
    low, high = (bound.ravel().astype(np.float64) for bound in (space.low, space.high))
    middle, half, dtype, shape = (high + low) / 2, (high - low) / 2, space.low.dtype, space.shape
    whole = dtype.kind in "biu"

    def rescale(action: np.ndarray) -> np.ndarray:
        scaled = middle + action * half
        if whole:
            np.rint(scaled, out=scaled)
        # Clipped, so that neither an action beyond [-1, 1] nor rounding leaves the bounds.
        np.maximum(scaled, low, out=scaled)
        np.minimum(scaled, high, out=scaled)
        return scaled.astype(dtype).reshape(len(action), *shape)

    return rescale


def choices(space: spaces.Space[Any]) -> list[int]:
    """How many values each part of a discrete action can have; none for other spaces."""
    match space:
        case spaces.Discrete():
            return [int(space.n)]
        case spaces.MultiDiscrete():
            return [int(n) for n in space.nvec.ravel()]
        case spaces.MultiBinary():
            return [2] * math.prod(space.shape)
    return []


def flat(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space as the agent sees it: unchanged if of arrays or numbers, else flattened into one array."""
    return space if isinstance(space, (spaces.Box, spaces.Discrete)) else spaces.flatten_space(space)


def agent_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """int64 for numbered states, uint8 for arrays of bytes or truth values; all others become float32."""
    if isinstance(space, spaces.Discrete):
        return np.dtype(np.int64)
    return np.dtype(np.uint8 if flat(space).dtype in (np.uint8, np.bool_) else np.float32)


def reader(space: spaces.Space[Any]) -> Callable[[Any], Any]:
    """The function from an observation to what the agent sees: the state's number from 0, or an array, not a copy."""
    if isinstance(space, spaces.Discrete):
        return lambda obs: _whole(obs, space, "an observation") - int(space.start)
    dtype, shape = agent_dtype(space), flat(space).shape
    as_is = isinstance(space, spaces.Box) and space.dtype == dtype
    if isinstance(space, spaces.Box) and dtype == np.uint8:  # needs no check where a byte, or a bit, may be anything
        as_is = bool((space.low == 0).all() and (space.high == (255 if space.dtype == dtype else 1)).all())
    bits = space.dtype == np.bool_

    def read(obs: Any) -> np.ndarray:
        given = obs
        if not (as_is and type(obs) is np.ndarray and obs.dtype == space.dtype and obs.shape == shape):
            given = array_of(space, obs)
            with np.errstate(all="ignore"):
                obs = given.astype(dtype)
        elif bits:
            obs = obs.view(dtype)
        if dtype == np.float32:
            _check_finite(obs, given)
        return obs

    return read


def scalar(value: Any, what: str) -> float:
    """A real number, which may come as an array of size 1."""
    try:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, (int, float, Real)):
            return float(number)
    except (ValueError, RuntimeError, OverflowError):  # an array of several numbers; an integer beyond all floats
        pass
    raise Wrong(f"{what} {_shown(value)}, which is no real number")


def flag(value: Any, what: str) -> bool:
    """True or false, which may come as 1 or 0."""
    number = scalar(value, what)
    if number not in (0, 1):
        raise Wrong(f"{what} {_shown(value)}, which is neither true nor false")
    return number == 1


def parts(result: Any, names: tuple[str, ...]) -> Sequence[Any]:
    """What `reset` or `step` returned, if it has as many parts as there are names."""
    several = isinstance(result, (tuple, list))
    if several and len(result) == len(names):
        return result
    given = f"{len(result)} values" if several else f"a {type(result).__name__}"
    raise Wrong(f"{given} instead of ({', '.join(names)})")


def array_of(space: spaces.Space[Any], obs: Any, what: str = "an observation") -> np.ndarray:
    """An observation as an array of the shape that `flat` has, every part checked, in its own precision."""
    match space:
        case spaces.Box():
            return _whole(obs, space, what) if space.dtype.kind in "biu" else _numbers(obs, space.shape, what)
        case spaces.Discrete() | spaces.MultiDiscrete() | spaces.MultiBinary():
            return np.asarray(spaces.flatten(space, _whole(obs, space, what)))
        case spaces.Dict() if hasattr(obs, "keys"):
            if missing := [key for key in space.spaces if key not in obs]:
                raise Wrong(f"{what} without {', '.join(map(repr, missing))}")
            inner: Any = space.spaces.items()
        case spaces.Tuple() if isinstance(obs, (tuple, list)) and len(obs) == len(space.spaces):
            inner = enumerate(space.spaces)
        case _:
            if not space.contains(obs):
                raise Wrong(f"{what} {_shown(obs)}, which is not in its space, a {type(space).__name__}")
            return np.asarray(spaces.flatten(space, obs))
    return np.concatenate([array_of(part, obs[key], f"{what}[{key!r}]").ravel() for key, part in inner])


def _whole(obs: Any, space: Any, what: str) -> Any:
    """An observation of a space of whole numbers, within its range: an int if Discrete, else an array of its dtype."""
    discrete = isinstance(space, spaces.Discrete)
    low, high = _range(space)
    if discrete and type(obs) is int and low <= obs <= high:
        return obs
    array = _numbers(obs, None if discrete else space.shape, what)
    if array.dtype.kind == "f" and (wrong := array != np.trunc(array)).any():
        raise Wrong(f"{what} with {array[wrong][0].item()}, where its space has whole numbers")
    if (wrong := (array < low) | (array > high)).any():
        limits = f" {low} to {high}" if discrete else ""
        raise Wrong(f"{what} with {array[wrong][0].item()}, beyond the range{limits} of its space")
    return int(array.item()) if discrete else array.astype(space.dtype)


def _range(space: Any) -> tuple[Any, Any]:
    match space:
        case spaces.Discrete():
            return space.start, space.start + space.n - 1
        case spaces.MultiDiscrete():
            return space.start, space.start + space.nvec - 1
        case spaces.MultiBinary():
            return 0, 1
    return space.low, space.high


def _numbers(obs: Any, shape: tuple[int, ...] | None, what: str) -> np.ndarray:
    """An array of plain numbers of the given shape, or of size 1 if that is None."""
    try:
        array = np.asarray(obs)
    except Exception:
        raise Wrong(f"{what} {_shown(obs)}, which is no array") from None
    if array.dtype.kind not in "biuf" or np.ma.is_masked(obs):
        raise Wrong(f"{what} {_shown(obs)}, which is no array of plain numbers")
    if array.shape != shape if shape is not None else array.size != 1:
        raise Wrong(f"{what} of shape {array.shape} instead of {shape or ()}")
    return array


def _check_finite(obs: np.ndarray, given: np.ndarray) -> None:
    row = obs.ravel()
    # One product is the fastest test; it may also overflow where all values are finite.
    if math.isfinite(np.vdot(row, row)) or np.isfinite(row).all():
        return
    if np.isfinite(given).all():
        raise Wrong(f"{np.abs(given).max()} in an observation, which float32 cannot hold")
    raise Wrong(f"{'NaN' if np.isnan(row).any() else 'infinity'} in an observation")


def _shown(value: Any) -> str:
    """A value in a few characters."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = f"of type {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."
