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

from rl_runner.config import env_ids
from rl_runner.envs.convert import agent_dtype, flat
from rl_runner.envs.process import contained, one_line
from rl_runner.envs.refusals import refusal
from rl_runner.errors import UserError

if TYPE_CHECKING:
    from rl_runner.config.schema import EnvConfig

# Said where one more environment fails although others work.
INSTANCES = (
    "a run needs several at once: two for a probe, then num_envs to train and as many as eval_episodes, at most 10, to "
    "evaluate; if they share a port, a file or a device, give each its own"
)


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
    """The environment with its time limit, if the runner can work with its spaces; UserError with the reason if not."""
    problem = env_ids.problem(env.id)
    if problem:
        raise UserError(problem)
    with contained(env.id, lambda error: UserError(f"env={env.id} cannot be made: {one_line(error)}")), _quiet(env.id):
        # The passive checker costs time in every step and warns about other people's code.
        made = gym.make(env.id, max_episode_steps=env.max_episode_steps, disable_env_checker=True, **env.kwargs)
        if reason := refusal(made, env.frame_stack):
            raise UserError(f"env={env.id} {reason}")
        return made


def spec_of(env: gym.Env, frame_stack: int = 1) -> Spec:
    """What an agent may know of an environment that `make` made."""
    observation, action = env.observation_space, env.action_space
    shape = tuple(flat(observation).shape or ())
    return Spec(
        obs_shape=(frame_stack, *shape) if frame_stack > 1 else shape,
        obs_dtype=torch.from_numpy(np.empty(0, agent_dtype(observation))).dtype,
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
