"""Evaluation: the critic's bias against known errors, the same episodes every time, and no trace left in training."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeAwareObservation, TimeLimit

from rl_runner.config.schema import EnvConfig
from rl_runner.errors import RunFailed
from rl_runner.evaluate import FARTHEST, Episode, Evaluator, q_bias

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


class Reel(gym.Env):
    """Observes the time; pays the same seven rewards over and over, whatever is done."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)
    rewards = (3.0, -1.0, 0.0, 0.5, 2.0, 0.0, -0.25)
    steps = 0  # of all instances

    def __init__(self, terminates: float = math.inf, truncates: float = math.inf, breaks: float = math.inf):
        self.terminates, self.truncates, self.breaks = terminates, truncates, breaks

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        Reel.steps += 1
        reward = self.rewards[self.time % 7]
        self.time += 1
        assert self.time <= self.breaks, "there is no more film"
        over = (self.time == self.terminates, self.time == self.truncates)
        return np.full(1, self.time, np.float32), reward, *over, {}


class Judge:
    """Knows the return that follows in a Reel which terminates at `end` or never, entropy bonuses of 0.5 included.

    Its estimate is wrong by `error(t)`.
    """

    def __init__(self, gamma: float, error: Callable[[int], float], end: float = math.inf, stochastic: bool = False):
        self.gamma, self.stochastic, self.bonus = gamma, stochastic, 0.5 if stochastic else 0.0
        # As many steps as are looked at, and then until γ^t is nothing.
        size = int(1700 + 25 / (1 - gamma)) if end == math.inf else int(end)
        truth, later = np.zeros(size + 1), 0.0
        for t in reversed(range(size)):
            truth[t] = Reel.rewards[t % 7] + gamma * later
            later = truth[t] + self.bonus
        self.truth = torch.from_numpy(truth)
        self.estimates = self.truth + torch.tensor([float(error(t)) for t in range(size + 1)])

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(obs), dtype=torch.int64)

    def critique(self, obs: torch.Tensor, generator: torch.Generator) -> Any:
        estimate = self.estimates[obs[:, 0].long()]
        return self.act(obs), estimate, torch.full_like(estimate, self.bonus)


def limited(**kwargs: Any) -> gym.Env:
    return TimeLimit(Reel(**kwargs), 50)


@pytest.fixture(autouse=True)
def environments() -> Iterator[None]:
    registry = dict(gym.registry)
    gym.register("Drift-v0", Drift)
    gym.register("Reel-v0", Reel, max_episode_steps=50)
    gym.register("Endless-v0", Reel)
    gym.register("Limited-v0", limited)
    gym.register("Twice-v0", limited, max_episode_steps=80)
    gym.register("Aware-v0", Reel, max_episode_steps=50, additional_wrappers=(TimeAwareObservation.wrapper_spec(),))
    yield
    gym.registry.clear()
    gym.registry.update(registry)


class Critic:
    """Always acts 1; estimates 10 · origin + time, with an entropy bonus of 100 + time."""

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(obs), dtype=torch.int64)

    def critique(self, obs: torch.Tensor, generator: torch.Generator) -> Any:
        return self.act(obs), 10 * obs[:, 0] + obs[:, 1], 100 + obs[:, 1]


class Mute:
    """Has no critic."""

    act = Critic.act


def evaluator(episodes: int = 7, seed: int = 0, limit: int | None = None, **kwargs: Any) -> Evaluator:
    return Evaluator(EnvConfig(id="Drift-v0", kwargs=kwargs, max_episode_steps=limit), seed, GAMMA, episodes)


def episode(terminated: bool, length: int = 3, settled: bool = True) -> Episode:
    """Three steps; the last estimate and bonus belong to the action that would follow."""
    rewards, estimates, bonuses = [1.0, 2.0, 4.0], [10.0, 20.0, 30.0, 40.0], [0.1, 0.2, 0.4, 0.8]
    return Episode(np.array(rewards), np.array(estimates), np.array(bonuses), length, terminated, settled)


# The bias of the critic, by hand


def test_bias_of_a_terminated_episode_counts_every_pair() -> None:
    third = 4.0
    second = 2 + 0.5 * (third + 0.4)
    first = 1 + 0.5 * (second + 0.2)
    want = ((10 - first) + (20 - second) + (30 - third)) / 3
    got = q_bias([episode(terminated=True)], GAMMA)
    assert got["eval/q_bias"] == pytest.approx(want)
    assert got["eval/q_bias_relative"] == pytest.approx(want / ((first + second + third) / 3))


def test_bias_of_a_cut_episode_counts_the_pairs_within_the_limit() -> None:
    third = 4 + 0.5 * (40 + 0.8)
    second = 2 + 0.5 * (third + 0.4)
    first = 1 + 0.5 * (second + 0.2)
    got = q_bias([episode(terminated=False, length=2)], GAMMA)
    assert got["eval/q_bias"] == pytest.approx(((10 - first) + (20 - second)) / 2)


def test_bias_weighs_pairs_not_episodes() -> None:
    cut, terminated = episode(False, length=2), episode(True)
    both, one, other = (q_bias(which, GAMMA)["eval/q_bias"] for which in ([cut, terminated], [cut], [terminated]))
    assert both == pytest.approx((2 * one + 3 * other) / 5)


def test_one_unknown_return_is_enough_for_no_bias() -> None:
    assert q_bias([episode(terminated=True), episode(terminated=False, settled=False)], GAMMA) == {}


def test_a_bias_relative_to_nothing_is_left_out() -> None:
    assert q_bias([Episode(np.zeros(2), np.ones(3), np.zeros(3), 2, True, True)], GAMMA) == {"eval/q_bias": 1.0}


# Through the evaluator, against a truth that is known

ERRORS: dict[str, Callable[[int], float]] = {
    "constant": lambda t: 1.0,
    "growing": lambda t: t / 40,
    "growing beyond 1": lambda t: 1 + t / 200,
    "growing below": lambda t: -3 - t / 100,
    "a wave": lambda t: 0.2 + math.sin(t / 5),
    "falling through zero": lambda t: 1 - t / 10,
    "alternating": lambda t: 1.0 if t % 3 else -1.0,
    "late": lambda t: float(t >= 40),
}


CASES = [
    *((name, length, length, False) for name in ERRORS for length in (50, 200, 1000)),
    *((name, length, math.inf, False) for name in ERRORS for length in (50, 200, 1000)),
    *((name, 50, end, True) for name in ERRORS for end in (50, math.inf)),
]


@pytest.mark.parametrize(("error", "length", "end", "stochastic"), CASES)
def test_bias_is_the_mean_error_over_the_episode(error: str, length: int, end: float, stochastic: bool) -> None:
    config = EnvConfig(id="Reel-v0", kwargs={"terminates": end}, max_episode_steps=length)
    judge = Judge(0.99, ERRORS[error], end, stochastic)
    metrics, _ = Evaluator(config, 0, 0.99, episodes=1)(judge, 1)  # type: ignore[arg-type]
    want = np.mean([ERRORS[error](t) for t in range(length)])
    assert metrics["eval/length_mean"] == length
    assert metrics["eval/q_bias"] == pytest.approx(want, rel=0.05)
    assert metrics["eval/q_bias_relative"] == pytest.approx(want / abs(float(judge.truth[:length].mean())), rel=0.05)


@pytest.mark.parametrize(
    ("id", "gamma"), [("Reel-v0", 0.0), ("Reel-v0", 0.5), ("Reel-v0", 0.9977), ("Limited-v0", 0.9), ("Twice-v0", 0.9)]
)
def test_a_critic_that_is_right_plus_one_measures_one(id: str, gamma: float) -> None:
    """Wherever the time limit lies, around the environment or within what was registered."""
    metrics, _ = Evaluator(EnvConfig(id=id), 0, gamma, episodes=1)(Judge(gamma, lambda t: 1.0), 1)  # type: ignore[arg-type]
    assert metrics["eval/length_mean"] == 50
    assert metrics["eval/q_bias"] == pytest.approx(1.0, rel=0.002)


def test_episodes_without_a_limit_are_played_on_like_cut_ones() -> None:
    metrics, _ = Evaluator(EnvConfig(id="Endless-v0"), 0, 0.99, 1)(Judge(0.99, ERRORS["growing"]), 1)  # type: ignore[arg-type]
    assert metrics["eval/length_mean"] == 1000
    assert metrics["eval/q_bias"] == pytest.approx(999 / 80, rel=0.05)


@pytest.mark.parametrize("end", [51, 60, 400])
def test_an_episode_that_terminates_beyond_its_limit_is_known_to_its_end(end: int) -> None:
    config = EnvConfig(id="Reel-v0", kwargs={"terminates": end})
    metrics, _ = Evaluator(config, 0, 0.99, 1)(Judge(0.99, lambda t: 1.0, end), 1)  # type: ignore[arg-type]
    assert metrics["eval/length_mean"] == 50
    assert metrics["eval/q_bias"] == pytest.approx(1.0, abs=1e-9)


TRUNCATES, BREAKS, FAR = "itself truncates", "there is no more film", f"looks more than {FARTHEST:,} steps ahead"
UNKNOWN: dict[str, tuple[dict[str, Any], float, str]] = {
    "truncates before the limit": ({"truncates": 30}, 0.99, TRUNCATES),
    "truncates at the limit": ({"truncates": 50}, 0.99, TRUNCATES),
    "truncates beyond the limit": ({"truncates": 70}, 0.99, TRUNCATES),
    "breaks at once beyond the limit": ({"breaks": 50}, 0.99, BREAKS),
    "breaks later": ({"breaks": 300}, 0.99, BREAKS),
    "gamma of 1": ({}, 1.0, FAR),
    "gamma near 1": ({}, 0.9999, FAR),
}


@pytest.mark.parametrize("case", UNKNOWN)
@pytest.mark.parametrize("stochastic", [True, False])
def test_unknown_returns_give_no_bias_and_one_line(
    case: str, stochastic: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    kwargs, gamma, reason = UNKNOWN[case]
    judge: Any = Judge(min(gamma, 0.99), lambda t: 1.0, stochastic=stochastic)
    evaluator = Evaluator(EnvConfig(id="Reel-v0", kwargs=kwargs), 0, gamma, episodes=2)
    for _ in range(2):
        metrics, returns = evaluator(judge, 5)
        length = min(50, kwargs.get("truncates", 50))
        assert set(metrics) == {"eval/return_mean", "eval/return_std", "eval/length_mean"}
        assert metrics["eval/length_mean"] == length
        assert returns == [sum(Reel.rewards[t % 7] for t in range(length))] * 5
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("no eval/q_bias where episodes are cut: ")
    assert reason in said[0]


@pytest.mark.parametrize(
    ("kwargs", "gamma"), [({"terminates": 40}, 1.0), ({"terminates": 50}, 0.9999), ({"truncates": 30}, 0.0)]
)
def test_what_is_known_all_the_same_is_measured(
    kwargs: dict[str, int], gamma: float, capsys: pytest.CaptureFixture[str]
) -> None:
    judge: Any = Judge(gamma, lambda t: 1.0, kwargs.get("terminates", math.inf))
    metrics, _ = Evaluator(EnvConfig(id="Reel-v0", kwargs=kwargs), 0, gamma, episodes=2)(judge, 2)
    assert metrics["eval/q_bias"] == pytest.approx(1.0)
    assert capsys.readouterr().err == ""


def test_an_environment_that_breaks_within_the_limit_is_an_error() -> None:
    config = EnvConfig(id="Reel-v0", kwargs={"breaks": 49})
    with pytest.raises(RunFailed, match="there is no more film"):
        Evaluator(config, 0, 0.99, 2)(Judge(0.99, lambda t: 1.0), 2)  # type: ignore[arg-type]


def test_only_cut_episodes_of_the_judged_policy_are_played_on() -> None:
    k = 65  # 0.9^66 = 0.00096
    for steps, end, stochastic in (
        (50 + k, math.inf, False),
        (50 + 50 + k, math.inf, True),
        (50, 50, False),
        (60, 60, False),
        (80, 40, True),
    ):
        judge: Any = Judge(0.9, lambda t: 1.0, end, stochastic)
        evaluator = Evaluator(EnvConfig(id="Reel-v0", kwargs={"terminates": end}), 0, 0.9, episodes=2)
        Reel.steps = 0
        evaluator(judge, 6)
        assert Reel.steps == 6 * steps


def test_wrappers_outside_the_limit_see_the_limit_that_was_set() -> None:
    evaluator = Evaluator(EnvConfig(id="Aware-v0"), 0, 0.99, episodes=1)
    assert evaluator.limit == evaluator.envs.spec.max_episode_steps == 50
    assert evaluator.envs.envs[0].get_wrapper_attr("max_timesteps") == 50


# The episodes


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("num_episodes", [1, 7, 10, 23])
def test_the_evaluator_sees_what_a_plain_loop_sees(stochastic: bool, num_episodes: int) -> None:
    """The bias is measured on the first ten episodes, with a policy of its own or without."""
    agent: Any = Critic()
    agent.stochastic = stochastic
    metrics, returns = evaluator(episodes=num_episodes)(agent, num_episodes)

    episodes = []
    seeds = evaluator(episodes=num_episodes)
    for i in range(num_episodes):
        wave, which = divmod(i, 10)
        if which == 0:
            seeds.envs.reset(wave)
        origin, length = float(seeds.envs.obs[which, 0]), seeds.envs.envs[which].unwrapped.length
        times = np.arange(length + 1)
        rewards = np.full(length, np.float32(seeds.envs.envs[which].unwrapped.origin + 1))
        episodes.append(Episode(rewards, 10 * origin + times, 100 + times, length, True, True))
    assert returns == pytest.approx([float(one.rewards.sum()) for one in episodes])
    assert metrics["eval/return_mean"] == pytest.approx(np.mean(returns))
    assert metrics["eval/return_std"] == pytest.approx(np.std(returns))
    assert metrics["eval/length_mean"] == pytest.approx(np.mean([one.length for one in episodes]))
    assert metrics["eval/q_bias"] == pytest.approx(q_bias(episodes[:10], GAMMA)["eval/q_bias"], rel=1e-5)


@pytest.mark.parametrize("rebuild", [False, True])
@pytest.mark.parametrize("stack", [1, 3])
def test_playing_on_leaves_the_episodes_alone(rebuild: bool, stack: int) -> None:
    """Those of an agent that is judged are those of one that is not, bit for bit."""

    class Looks(Critic):
        def critique(self, obs: torch.Tensor, generator: torch.Generator) -> Any:
            assert torch.rand((), generator=generator) < 1
            return self.act(obs), obs.sum(-1).reshape(len(obs), -1)[:, -1], torch.zeros(len(obs))

    config = EnvConfig(id="Drift-v0", kwargs={"longest": 12}, max_episode_steps=5, frame_stack=stack)
    (judged, with_critic), (alone, without) = (
        Evaluator(config, 0, 0.9, 4, rebuild)(agent, 23) for agent in (Looks(), Mute())
    )
    assert with_critic == without
    assert len(set(without)) == 23
    assert {tag: judged[tag] for tag in alone} == alone
    assert judged.keys() - alone.keys() == {"eval/q_bias", "eval/q_bias_relative"}


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
    metrics, returns = evaluator()(Mute(), 7)
    assert set(metrics) == {"eval/return_mean", "eval/return_std", "eval/length_mean"}
    assert returns == evaluator()(Critic(), 7)[1]
