"""An exported policy needs nothing of this project, and acts like the agent in the environment's own units."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl_runner import saved_policy
from rl_runner.config.schema import Config
from rl_runner.errors import RunFailed, UserError
from rl_runner.run import run
from rl_runner.saved_policy import load

TINY = (
    "tuned=none", "learning_starts=40", "total_steps=60", "log_every=60", "eval_every=0", "final_eval_episodes=1",
)  # fmt: skip
NET = ("network.hidden=[8]", "algo.batch_size=8", "replay.capacity=100")
RUNS = {
    "discrete": ("algo=dqn", "env=CartPole-v1", *NET),
    "continuous": ("algo=sac", "env=Pendulum-v1", *NET),
    "batch norm": ("algo=crossq", "actor_network.norm=batch", "env=Pendulum-v1", *NET),
    "table": ("algo=q_learning", "env=FrozenLake-v1"),
    "digits": ("algo=dqn", "env=Digits-v0", *NET),
}


class Digits(gym.Env):
    """Pays 1 for the digits that it shows, the first of them from 1 to 3 and the second 0 or 1."""

    observation_space = gym.spaces.Box(0, 3, (2,), np.float32)
    action_space = gym.spaces.MultiDiscrete([3, 2], start=[1, 0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.shown = self.np_random.integers([1, 0], [4, 2])
        return self.shown.astype(np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        assert action in self.action_space
        return self.shown.astype(np.float32), float((action == self.shown).all()), True, False, {}


gym.register("Digits-v0", Digits)


@pytest.mark.parametrize("kind", RUNS)
def test_exported_policy_acts_like_the_agent(kind: str, configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(*TINY, *RUNS[kind])
    run(config, tmp_path)
    file = saved_policy.export([str(tmp_path)])
    program, (agent, step, _) = torch.export.load(file).module(), load(config, tmp_path)
    assert step == 60
    for size in (1, 7):
        env = config.env.id
        space = gym.make(env).observation_space
        space.seed(size)
        obs = torch.as_tensor(np.stack([space.sample() for _ in range(size)]))
        action = agent.act(obs)
        expected = {
            "batch norm": 2 * action,
            "continuous": 2 * action,  # Pendulum's torque goes from -2 to 2
            "digits": torch.stack([1 + action // 2, action % 2], dim=-1),
        }.get(kind, action)
        torch.testing.assert_close(program(obs), expected)


def test_combinations_of_choices_are_learned(configure: Callable[..., Config], tmp_path: Path) -> None:
    words = (*TINY, *RUNS["digits"], "network.hidden=[32]", "total_steps=1200", "algo.batch_size=32")
    result = run(configure(*words, "replay.capacity=1200", "final_eval_episodes=20"), tmp_path)
    assert result["eval/return_mean"] == 1.0


def test_the_file_needs_pytorch_alone(configure: Callable[..., Config], tmp_path: Path) -> None:
    run(configure(*TINY, *RUNS["discrete"]), tmp_path / "run")
    file = saved_policy.export([str(tmp_path / "run"), "--out", str(tmp_path / "policy.pt2")])
    use = (
        "import sys, torch\n"
        f"print(torch.export.load({str(file)!r}).module()(torch.zeros(3, 4)).shape, 'rl_runner' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", use], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "torch.Size([3]) False"


def test_a_file_that_acts_otherwise_is_found_out(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(*TINY, *RUNS["continuous"])
    run(config, tmp_path)
    file, (agent, _, _) = saved_policy.export([str(tmp_path)]), load(config, tmp_path)
    other = gym.spaces.Box(-3.0, 3.0, (1,))
    with pytest.raises(RunFailed, match="does not act like the agent"):
        saved_policy.check(file, agent, other, torch.ones(2, 3))


def test_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        saved_policy.export([str(tmp_path)])
