"""Two small worlds of images, for the command line `plugins=[pixels]` and for tests."""

import gymnasium as gym
import numpy as np


class Catch(gym.Env):
    """A ball falls nine rows down a 10x5 board (Osband et al. 2020): 1 for a paddle below it, -1 otherwise."""

    observation_space = gym.spaces.Box(0, 255, (10, 5), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row, self.column, self.paddle = 0, int(self.np_random.integers(5)), 2
        return self.board(), {}

    def board(self):
        board = np.zeros((10, 5), np.uint8)
        board[self.row, self.column] = board[9, self.paddle] = 255
        return board

    def step(self, action):
        self.paddle = min(max(self.paddle + int(action) - 1, 0), 4)
        self.row += 1
        done = self.row == 9
        return self.board(), (1.0 if self.paddle == self.column else -1.0) * done, done, False, {}


class Dot(gym.Env):
    """A square of 3x3 pixels anywhere on a 16x16 image is to be moved to its middle and kept there, 12 steps long.

    An action moves it by up to 2 pixels in either direction. A step's reward is 1 in the middle and falls by 1/4 with
    each pixel of distance (the larger of the two directions) to 0. Random actions get 0.12 a step; going straight there
    gets what `optimum` says, 0.94 a step on average.
    """

    observation_space = gym.spaces.Box(0, 255, (16, 16), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(1, 14, 2), 0
        return self.image(), {}

    def image(self):
        image = np.zeros((16, 16), np.uint8)
        row, column = np.rint(self.place).astype(int)
        image[row - 1 : row + 2, column - 1 : column + 2] = 255
        return image

    def step(self, action):
        self.place = np.clip(self.place + 2 * np.asarray(action), 1, 14)
        self.steps += 1
        return self.image(), max(0.0, 1 - self.distance() / 4), False, self.steps == 12, {}

    def distance(self):
        return float(np.abs(self.place - 7.5).max())

    def optimum(self):
        """The return of going straight to the middle from here."""
        return sum(max(0.0, 1 - max(0.0, self.distance() - 2 * k) / 4) for k in range(1, 13))


class Parts(Catch):
    """An image and a number."""

    observation_space = gym.spaces.Dict(
        {"time": gym.spaces.Box(0, 1, (1,)), "view": gym.spaces.Box(0, 255, (7, 16), np.uint8)}
    )

    def board(self):
        return {"time": np.ones(1, np.float32), "view": np.zeros((7, 16), np.uint8)}


gym.register("Catch-v0", Catch)
gym.register("Parts-v0", Parts)
gym.register("Pixels/Catch-v0", Catch)
gym.register("Dot-v0", Dot)
