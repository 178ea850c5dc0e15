"""Wrappers that Gymnasium lacks; those for families of environments are named by their presets in configs/preset."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FilterObservation

from rl_runner.config.problems import did_you_mean
from rl_runner.errors import UserError


class ForgetLastAction(gym.Wrapper):
    """MinAtar without the one trace that its episodes leave: the action that a sticky first step would repeat."""

    def reset(self, **options: Any) -> Any:
        game: Any = self.unwrapped
        game.game.last_action = 0  # as in a new environment
        return self.env.reset(**options)


class OneHotGrid(gym.ObservationWrapper):
    """MiniGrid's numbers of objects, colours and states `[H, W, 3]` as truth values `[H, W, 21]`.

    They are names and not quantities, though their space calls them bytes from 0 to 255.
    """

    SIZES = (11, 6, 4)  # of MiniGrid's tables; its third number is also the direction of an agent that is seen

    def __init__(self, env: gym.Env):
        super().__init__(env)
        shape = env.observation_space.shape
        if shape is None or len(shape) != 3 or shape[-1] != 3:
            raise ValueError(f"OneHotGrid reads grids [H, W, 3], not {shape}")
        self.observation_space = spaces.Box(0, 1, (*shape[:2], sum(self.SIZES)), np.bool_)

    def observation(self, observation: Any) -> Any:
        return np.concatenate([observation[..., i, None] == np.arange(n) for i, n in enumerate(self.SIZES)], axis=-1)


def observing(env: gym.Env, keys: Sequence[str]) -> gym.Env:
    """The environment with these parts of its Dict observation alone, one by itself in its own shape."""
    space = env.observation_space
    known = list(space.spaces) if isinstance(space, spaces.Dict) else []
    for key in keys:
        if key not in known:
            there = f"there are {', '.join(known)}" if known else "there is no Dict: leave it out"
            raise UserError(f"env.observation_keys: no {key} is observed{did_you_mean(key, known) or f'; {there}'}")
    return FilterObservation(env, keys) if len(keys) > 1 else Part(env, keys[0])


class Part(gym.ObservationWrapper):
    """One part of a Dict observation, for `observing`."""

    def __init__(self, env: gym.Env, key: str):
        super().__init__(env)
        space: Any = env.observation_space
        self.key, self.observation_space = key, space[key]

    def observation(self, observation: Any) -> Any:
        return observation[self.key]
