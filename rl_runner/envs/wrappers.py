"""Wrappers for families of environments, which their presets in configs/preset name."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


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
