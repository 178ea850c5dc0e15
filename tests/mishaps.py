"""A plugin whose environment lets something happen to its process, until the cause is gone."""

import os
import signal
import sys
import warnings
from typing import Any

import gymnasium as gym

CURED = "MISHAPS_CURED"  # in the process environment: nothing happens any more


class Mishap(gym.Env[int, int]):
    """A corridor of four states, five steps long; in the 30th episode `what` happens."""

    observation_space = gym.spaces.Discrete(4)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, what: str = "nothing"):
        self.what = "nothing" if CURED in os.environ else what
        self.episode = self.state = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode += 1
        self.state = self.steps = 0
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if self.episode == 30:
            self.happen()
        self.steps += 1
        self.state = min(3, self.state + int(action))
        reward = float("nan") if self.what == "not_a_number" and self.episode == 30 else float(self.state == 3)
        return self.state, reward, False, self.steps == 5, {}

    def happen(self) -> None:
        match self.what:
            case "raise":
                raise ZeroDivisionError("the pole fell through the floor")
            case "exit":
                sys.exit(0)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "talk":
                print("0 ± 1", flush=True)
                sys.stderr.write("as bytes, too: ")
                sys.stderr.buffer.write(b"\xc2\xb1\n")
                sys.stderr.flush()
                warnings.warn("a warning with a ±", stacklevel=1)


gym.register("Mishap-v0", Mishap)
