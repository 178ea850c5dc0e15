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
    """Two squares of 3x3 pixels on a 16x16 image: the agent moves the bright one to the dim one, 12 steps long.

    An action moves by up to 2 pixels in either direction. A step's reward is 1 at the goal and falls by 1/8 with each
    pixel of distance (the larger of the two directions) to 0. An agent that goes straight there from the start,
    3 steps on the way and more, gets what `optimum` says.
    """

    observation_space = gym.spaces.Box(0, 255, (16, 16), np.uint8)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(1, 14, (2, 2))
        self.steps = 0
        return self.image(), {}

    def image(self):
        image = np.zeros((16, 16), np.uint8)
        for (row, column), shade in ((np.rint(self.goal).astype(int), 100), (np.rint(self.place).astype(int), 255)):
            image[row - 1 : row + 2, column - 1 : column + 2] = shade
        return image

    def step(self, action):
        self.place = np.clip(self.place + 2 * np.asarray(action), 1, 14)
        self.steps += 1
        return self.image(), max(0.0, 1 - self.distance() / 8), False, self.steps == 12, {}

    def distance(self):
        return float(np.abs(self.place - self.goal).max())

    def optimum(self):
        """The return of going straight to the goal from here."""
        return sum(max(0.0, 1 - max(0.0, self.distance() - 2 * k) / 8) for k in range(1, 13))


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
