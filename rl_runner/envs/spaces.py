"""From Gymnasium's spaces to what an agent knows: observations as numbers, actions in 0..n-1 or in [-1, 1]."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, FrameStackObservation, TransformObservation

from rl_runner.config import env_ids
from rl_runner.errors import UserError

if TYPE_CHECKING:
    from rl_runner.config.schema import EnvConfig


@dataclass(frozen=True)
class Spec:
    """All that an agent may know of an environment."""

    obs_shape: tuple[int, ...]  # of one observation as the agent sees it, [K, *frame] when stacked; () if Discrete
    obs_dtype: torch.dtype  # float32, uint8, or int64 for Discrete observations
    num_states: int | None  # of Discrete observations
    num_actions: int | None  # of Discrete actions, which the agent numbers from 0
    action_dim: int | None  # of Box actions, flattened; the agent's lie in [-1, 1]
    frame_stack: int  # K; 1 is no stacking
    max_episode_steps: int | None


def make(env: "EnvConfig") -> gym.Env:
    """The environment, with Box or zero-based Discrete observations and its time limit; UserError if it cannot be."""
    problem = env_ids.problem(env.id)
    if problem:
        raise UserError(problem)
    try:
        with _quiet(env.id):
            # The passive checker costs time in every step and warns about other people's code.
            made = gym.make(env.id, max_episode_steps=env.max_episode_steps, disable_env_checker=True, **env.kwargs)
            return _stack(_simplify(made, env.id), env)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"env={env.id} cannot be made: {one_line(error)}") from error


def spec_of(env: gym.Env, frame_stack: int = 1) -> Spec:
    """What an agent may know of an environment that `make` made; UserError if it has no supported action space."""
    observation, action = env.observation_space, env.action_space
    _check_actions(action, env.unwrapped.spec.id if env.unwrapped.spec else str(env.unwrapped))
    return Spec(
        obs_shape=tuple(observation.shape or ()),
        obs_dtype=_obs_dtype(observation),
        num_states=int(observation.n) if isinstance(observation, spaces.Discrete) else None,
        num_actions=int(action.n) if isinstance(action, spaces.Discrete) else None,
        action_dim=int(np.prod(action.shape)) if isinstance(action, spaces.Box) else None,
        frame_stack=frame_stack,
        max_episode_steps=env.spec.max_episode_steps if env.spec else None,
    )


def action_map(space: gym.Space) -> Callable[[np.ndarray], np.ndarray]:
    """The function from agent's actions, [B] int64 or [B, action_dim] in [-1, 1], to the environment's, [B, *shape]."""
    if isinstance(space, spaces.Discrete):
        return lambda action: action + space.start
    assert isinstance(space, spaces.Box)
    low, high = (bound.ravel().astype(np.float64) for bound in (space.low, space.high))
    middle, half, dtype, shape = (high + low) / 2, (high - low) / 2, space.low.dtype, space.shape
    whole = np.issubdtype(dtype, np.integer)

    def rescale(action: np.ndarray) -> np.ndarray:
        scaled = middle + action * half
        if whole:
            np.rint(scaled, out=scaled)
        # Clipped, so that neither an action beyond [-1, 1] nor rounding leaves the bounds.
        np.maximum(scaled, low, out=scaled)
        np.minimum(scaled, high, out=scaled)
        return scaled.astype(dtype).reshape(len(action), *shape)

    return rescale


def one_line(error: BaseException) -> str:
    """An exception as `Type: message` without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def _quiet(env_id: str) -> Iterator[None]:
    """Silence what making an environment says about its own code; what it says while it runs stays audible."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "mujoco" not in str(gym.spec(env_id.rpartition(":")[2]).entry_point):
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


def _simplify(env: gym.Env, env_id: str) -> gym.Env:
    space = env.observation_space
    if isinstance(space, spaces.Box):
        return env
    if isinstance(space, spaces.Discrete):
        first = space.start
        return TransformObservation(env, lambda obs: obs - first, spaces.Discrete(space.n)) if first else env
    if space.is_np_flattenable:
        return FlattenObservation(env)
    raise UserError(f"env={env_id} observes a {type(space).__name__} of varying size; a fixed size is needed: wrap it")


def _stack(env: gym.Env, config: "EnvConfig") -> gym.Env:
    if config.frame_stack == 1:
        return env
    if not isinstance(env.observation_space, spaces.Box):
        raise UserError(f"env.frame_stack={config.frame_stack} stacks arrays; {config.id} observes a number: use 1")
    # The stack keeps its frames by reference, and an environment may return one buffer again and again.
    copied = TransformObservation(env, np.copy, env.observation_space)
    return FrameStackObservation(copied, config.frame_stack, padding_type="reset")


def _check_actions(space: gym.Space, env_id: str) -> None:
    if isinstance(space, spaces.Discrete):
        return
    if not isinstance(space, spaces.Box):
        raise UserError(f"env={env_id} acts by a {type(space).__name__}; only Discrete and Box actions are supported")
    with np.errstate(over="ignore", invalid="ignore"):
        bounded = np.isfinite(space.high.astype(np.float32) - space.low.astype(np.float32)).all()
    if not bounded:
        raise UserError(f"env={env_id} has unbounded actions; wrap it so that every action has finite bounds")


def _obs_dtype(space: gym.Space) -> torch.dtype:
    if isinstance(space, spaces.Discrete):
        return torch.int64
    return torch.uint8 if space.dtype == np.uint8 else torch.float32
