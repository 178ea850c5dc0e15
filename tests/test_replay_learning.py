"""What a replay changes in learning: priorities and n-step returns carry a delayed reward back faster."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

from rl_runner.config.schema import EnvConfig
from rl_runner.envs import Envs
from rl_runner.networks import MLP
from rl_runner.replay import PrioritizedReplay, UniformReplay

LENGTH = 12
GAMMA = 0.95
PER = {"alpha": 0.6, "beta": 0.4, "beta_end": 1.0, "epsilon": 1e-6}


class Corridor(gym.Env[int, int]):
    """Whatever the action, one cell further in every step; the only reward, 1, is for leaving the last cell."""

    observation_space = spaces.Discrete(LENGTH)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.cell = 0
        return self.cell, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.cell += 1
        done = self.cell == LENGTH
        return min(self.cell, LENGTH - 1), float(done), done, False, {}


@pytest.fixture
def corridor() -> Iterator[str]:
    gym.register("Corridor-v0", Corridor)
    yield "Corridor-v0"
    del gym.registry["Corridor-v0"]


def updates_to_the_value(make_agent: Callable[..., Any], env: str, seed: int, make_replay: Any, **keys: Any) -> int:
    """After how many updates, in steps of 10, DQN knows the value γ^(LENGTH-1-i) of every cell i to 0.1."""
    envs = Envs(EnvConfig(id=env), num_envs=4, seed=seed)
    wired: dict[str, Any] = {"spec": envs.spec, "num_envs": 4, "total_steps": 3000, "device": "cpu", "directory": None}
    replay = make_replay(**wired, gamma=GAMMA, seed=seed, capacity=2000, **keys)
    random = torch.Generator().manual_seed(seed)
    while replay.size < 2000:
        obs, action = envs.obs, torch.randint(2, (4,), generator=random)
        step = envs.step(action)
        replay.add(obs, action, step.reward, step.terminated, step.truncated, step.next_obs)
    agent = make_agent(
        "dqn",
        network=functools.partial(MLP, hidden=[32], activation="relu", norm="none"),
        spec=envs.spec,
        seed=seed,
        gamma=GAMMA,
        batch_size=32,
        target_update="polyak",
        tau=0.05,
        optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
    )
    cells = torch.arange(LENGTH)
    value = GAMMA ** (LENGTH - 1.0 - cells)
    for updates in range(3000):
        if updates % 10 == 0 and (agent.value.mean(agent.q(cells)).amax(dim=1) - value).abs().max() < 0.1:
            return updates
        batch = replay.gather(*replay.draw(32, step=updates))
        _, td_error = agent.update(batch, updates)
        replay.prioritize(batch.index, td_error)
    return 3000


def test_priorities_and_three_steps_learn_a_delayed_reward_in_fewer_updates(
    make_agent: Callable[..., Any], corridor: str
) -> None:
    learn = functools.partial(updates_to_the_value, make_agent, corridor)
    slow = np.array([learn(seed, UniformReplay) for seed in range(10)])
    fast = np.array([learn(seed, PrioritizedReplay, n_step=3, **PER) for seed in range(10)])
    assert slow.max() < 3000
    fewer = stats.bootstrap((slow - fast,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    assert fewer.low > 0
