"""Evaluation: the critic's bias against sums by hand, the same episodes every time, and no trace left in training."""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_runner.config.schema import EnvConfig
from rl_runner.evaluate import Episode, Evaluator, q_bias

GAMMA = 0.5


class Drift(gym.Env):
    """Observes (episode's random origin, time); pays what it observes; ends after its own random length."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)
    steps = 0  # of all instances

    def __init__(self, terminates: bool = True, longest: int = 4):
        self.terminates, self.longest = terminates, longest

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.origin, self.time = self.np_random.normal(), 0
        self.length = int(self.np_random.integers(1, self.longest + 1))
        return self._observe(), {}

    def step(self, action: int) -> Any:
        Drift.steps += 1
        self.time += 1
        over = self.time == self.length
        return self._observe(), self.origin + action, over and self.terminates, over and not self.terminates, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.origin, self.time], np.float32)


@pytest.fixture(autouse=True)
def drift() -> Iterator[None]:
    gym.register("Drift-v0", Drift)
    yield
    del gym.registry["Drift-v0"]


class Critic:
    """Always acts 1; estimates 10 · origin + time, with an entropy bonus of 100 + time."""

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(obs), dtype=torch.int64)

    def critique(self, obs: torch.Tensor, generator: torch.Generator) -> Any:
        return self.act(obs), 10 * obs[:, 0] + obs[:, 1], 100 + obs[:, 1]


def evaluator(episodes: int = 7, seed: int = 0, limit: int | None = None, **kwargs: Any) -> Evaluator:
    return Evaluator(EnvConfig(id="Drift-v0", kwargs=kwargs, max_episode_steps=limit), seed, GAMMA, episodes)


def episode(terminated: bool) -> Episode:
    """Three steps; the last estimate and bonus belong to the action that would follow."""
    rewards, estimates, bonuses = [1.0, 2.0, 4.0], [10.0, 20.0, 30.0, 40.0], [0.1, 0.2, 0.4, 0.8]
    return Episode(np.array(rewards), np.array(estimates), np.array(bonuses), terminated)


def test_bias_of_a_terminated_episode_counts_every_pair() -> None:
    third = 4.0
    second = 2 + 0.5 * (third + 0.4)
    first = 1 + 0.5 * (second + 0.2)
    want = ((10 - first) + (20 - second) + (30 - third)) / 3
    assert q_bias([episode(terminated=True)], GAMMA) == pytest.approx(want)


def test_bias_of_a_truncated_episode_counts_the_first_half_and_closes_the_tail() -> None:
    third = 4 + 0.5 * (40 + 0.8)
    second = 2 + 0.5 * (third + 0.4)
    first = 1 + 0.5 * (second + 0.2)
    assert q_bias([episode(terminated=False)], GAMMA) == pytest.approx(((10 - first) + (20 - second)) / 2)


def test_bias_weighs_pairs_not_episodes() -> None:
    both = q_bias([episode(terminated=True), episode(terminated=False)], GAMMA)
    terminated, truncated = (q_bias([episode(end)], GAMMA) for end in (True, False))
    assert both == pytest.approx((3 * terminated + 2 * truncated) / 5)


def test_bias_of_a_perfect_critic_is_zero() -> None:
    terminated = Episode(np.array([1.0, 2.0]), np.array([1 + 0.5 * 2.0, 2.0, 99.0]), np.zeros(3), True)
    endless = Episode(np.ones(4), np.full(5, 2.0), np.zeros(5), False)
    assert q_bias([terminated, endless], GAMMA) == pytest.approx(0)


@pytest.mark.parametrize("terminates", [True, False])
@pytest.mark.parametrize("stochastic", [False, True])
def test_the_evaluator_sees_what_a_plain_loop_sees(terminates: bool, stochastic: bool) -> None:
    agent: Any = Critic()
    agent.stochastic = stochastic
    metrics, returns = evaluator(terminates=terminates)(agent, 7)

    env, episodes = gym.make("Drift-v0", terminates=terminates), []
    seeds = evaluator(terminates=terminates)
    for i in range(7):
        obs = seeds.envs.obs[i].numpy()
        origin, length = float(obs[0]), seeds.envs.envs[i].unwrapped.length
        times = np.arange(length + 1)
        rewards = np.full(length, np.float32(seeds.envs.envs[i].unwrapped.origin + 1))
        episodes.append(Episode(rewards, 10 * origin + times, 100 + times, terminates))
    assert returns == pytest.approx([float(one.rewards.sum()) for one in episodes])
    assert metrics["eval/return_mean"] == pytest.approx(np.mean(returns))
    assert metrics["eval/return_std"] == pytest.approx(np.std(returns))
    assert metrics["eval/length_mean"] == pytest.approx(np.mean([len(one.rewards) for one in episodes]))
    assert metrics["eval/q_bias"] == pytest.approx(q_bias(episodes, GAMMA), rel=1e-5)
    env.close()


def test_every_evaluation_plays_the_same_episodes() -> None:
    judge = evaluator()
    first, again = judge(Critic(), 7), judge(Critic(), 7)
    assert first == again == evaluator()(Critic(), 7)
    assert evaluator(seed=1)(Critic(), 7)[1] != first[1]
    assert len(set(first[1])) == 7


def test_more_episodes_than_environments() -> None:
    metrics, returns = evaluator(episodes=23)(Critic(), 23)
    assert len(returns) == len(set(returns)) == 23
    assert returns[:7] == evaluator()(Critic(), 7)[1]
    assert metrics["eval/return_mean"] == pytest.approx(np.mean(returns))


def test_an_environment_that_has_ended_rests() -> None:
    Drift.steps = 0
    metrics, _ = evaluator()(Critic(), 7)
    assert Drift.steps == round(7 * metrics["eval/length_mean"])


def test_a_time_limit_cuts_like_a_truncation() -> None:
    metrics, _ = evaluator(longest=10**6, limit=5)(Critic(), 7)
    assert metrics["eval/length_mean"] == 5


def test_an_episode_without_end_is_cut_at_a_thousand_steps() -> None:
    metrics, _ = evaluator(episodes=2, longest=10**9)(Critic(), 2)
    assert metrics["eval/length_mean"] == 1000


def test_an_agent_without_a_critic_is_evaluated_all_the_same() -> None:
    class Mute:
        act = Critic.act

    metrics, returns = evaluator()(Mute(), 7)  # type: ignore[arg-type]
    assert set(metrics) == {"eval/return_mean", "eval/return_std", "eval/length_mean"}
    assert returns == evaluator()(Critic(), 7)[1]
