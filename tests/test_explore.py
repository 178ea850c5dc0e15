"""Behaviour: schedules at points worked out by hand, and the statistics of what is random."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from rl_runner.algos.q_learning import QLearning
from rl_runner.envs import Spec
from rl_runner.explore import GaussianNoise, OUNoise, RepeatedActions, action_noise, epsilon_greedy, epsilon_schedule


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("step", "epsilon"), [(0, 1.0), (100, 0.8), (250, 0.5), (400, 0.2), (401, 0.2), (1000, 0.2)])
def test_linear_schedule_reaches_its_minimum_after_a_fraction_of_the_run(step: int, epsilon: float) -> None:
    schedule = epsilon_schedule("linear", 0.2, fraction=0.4, decay=0.5, total_steps=1000)
    assert schedule(step) == pytest.approx(epsilon)


@pytest.mark.parametrize(("step", "epsilon"), [(0, 1.0), (1, 0.9), (2, 0.81), (6, 0.531441), (7, 0.5), (10**6, 0.5)])
def test_multiplicative_schedule_decays_once_per_step(step: int, epsilon: float) -> None:
    schedule = epsilon_schedule("multiplicative", 0.5, fraction=0.4, decay=0.9, total_steps=1000)
    assert schedule(step) == pytest.approx(epsilon)


def test_schedules_at_the_ends_of_their_ranges() -> None:
    at_once = epsilon_schedule("linear", 0.1, fraction=0.0, decay=0.0, total_steps=1000)
    assert [at_once(0), at_once(1)] == pytest.approx([1.0, 0.1])
    assert epsilon_schedule("multiplicative", 0.1, fraction=0.0, decay=0.0, total_steps=1000)(1) == 0.1
    assert epsilon_schedule("multiplicative", 0.1, fraction=0.0, decay=1.0, total_steps=1000)(10**6) == 1.0


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_frequencies(epsilon: float) -> None:
    draws, actions = 20_000, 4
    obs = torch.arange(draws) % 3  # greedy actions 1, 2, 3

    def greedy(obs: Tensor) -> Tensor:
        return obs + 1

    chosen = epsilon_greedy(greedy, obs, epsilon, actions, stream())
    assert chosen.shape == (draws,)
    assert chosen.dtype == torch.int64
    for state in range(3):
        here = chosen[obs == state]
        expected = [epsilon / actions + (1 - epsilon) * (a == state + 1) for a in range(actions)]
        counts = torch.bincount(here, minlength=actions)
        if epsilon == 0:
            assert counts[state + 1] == len(here)
        else:
            assert stats.chisquare(counts, [p * len(here) for p in expected]).pvalue > 1e-4


def test_epsilon_greedy_randomness_is_independent_of_the_policy() -> None:
    """Which environments explore, and how, must not change with what the network prefers."""
    obs = torch.zeros(1000)
    one = epsilon_greedy(lambda obs: torch.zeros(1000, dtype=torch.int64), obs, 0.5, 4, stream())
    two = epsilon_greedy(lambda obs: torch.ones(1000, dtype=torch.int64), obs, 0.5, 4, stream())
    at_random = one == two
    assert 400 < at_random.sum() < 600
    assert torch.equal(two[~at_random], torch.ones(int((~at_random).sum()), dtype=torch.int64))


def test_repeated_actions_last_as_long_as_the_zeta_distribution_says() -> None:
    """P(1), P(2), P(3) and P(more) of n^-2 up to 10 000, whose sum is within 1e-4 of π²/6."""
    repeats, draws = RepeatedActions(2.0, stream()), 50_000
    everyone = torch.ones(draws, dtype=torch.bool)
    repeats.extend(everyone, torch.zeros(draws, dtype=torch.int64), ~everyone)
    duration = repeats.left + 1
    assert duration.min() == 1
    assert duration.max() <= RepeatedActions.LONGEST
    probability = [6 / torch.pi**2 / n**2 for n in (1, 2, 3)]
    counts = torch.bincount(duration.clamp(max=4), minlength=5)[1:]
    expected = torch.tensor([*probability, 1 - sum(probability)]) * draws
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > 1e-4


def test_a_repeated_action_goes_on_until_its_time_or_its_episode_is_over() -> None:
    repeats = RepeatedActions(2.0, stream())
    repeats.action, repeats.left = torch.tensor([3, 3, 3, 3]), torch.tensor([2, 1, 0, 2])
    greedy, new = torch.zeros(4, dtype=torch.bool), torch.tensor([1, 1, 1, 1])
    episode_begins = torch.tensor([False, False, False, True])
    at_random, action = repeats.extend(greedy, new, episode_begins)
    assert at_random.tolist() == [True, True, False, False]
    assert action[at_random].tolist() == [3, 3]
    at_random, action = repeats.extend(greedy, new, greedy)
    assert at_random.tolist() == [True, False, False, False]
    at_random, action = repeats.extend(~greedy, new, greedy)
    assert at_random.all()
    assert action.tolist() == [1, 1, 1, 1]


def test_repeated_actions_continue_from_their_saved_state() -> None:
    one, other = RepeatedActions(1.1, stream()), RepeatedActions(1.1, stream(1))
    everyone = torch.ones(50, dtype=torch.bool)
    one.extend(everyone, torch.arange(50), ~everyone)
    other.load_state_dict(one.state_dict())
    other.generator.set_state(one.generator.get_state())
    (at_random, action), (twin_at_random, twin_action) = (
        repeats.extend(~everyone, torch.zeros(50, dtype=torch.int64), ~everyone) for repeats in (one, other)
    )
    assert at_random.any()
    assert torch.equal(at_random, twin_at_random)
    assert torch.equal(action, twin_action)


def test_without_repetition_not_one_more_random_number_is_drawn() -> None:
    generator = stream()
    repeats, everyone = RepeatedActions(None, generator), torch.ones(3, dtype=torch.bool)
    at_random, action = repeats.extend(everyone, torch.arange(3), everyone)
    assert torch.equal(at_random, everyone)
    assert torch.equal(action, torch.arange(3))
    assert torch.equal(generator.get_state(), stream().get_state())
    assert repeats.state_dict() == {}


def test_dqn_repeats_random_actions(make_agent: Any) -> None:
    """With ε = 1/2 and durations by n^-1.1 nearly every environment repeats one action most of the time."""
    agent = make_agent("dqn", epsilon_mu=1.1, epsilon_min=0.5)
    obs = torch.randn(500, 3, generator=stream())
    first = torch.zeros(500, dtype=torch.bool)
    actions = torch.stack([agent.explore(obs, 100, first) for _ in range(60)])[20:]
    at_random = actions != agent.act(obs)
    independent = make_agent("dqn", epsilon_min=0.5)
    baseline = torch.stack([independent.explore(obs, 100, first) for _ in range(40)]) != independent.act(obs)
    again = (at_random[1:] & at_random[:-1]).sum() / at_random[:-1].sum()
    assert again > 0.9
    assert (baseline[1:] & baseline[:-1]).sum() / baseline[:-1].sum() < 0.5


def test_gaussian_noise_is_white() -> None:
    noise = GaussianNoise(2, 0.3, stream())
    first = torch.zeros(3, dtype=torch.bool)
    x = torch.stack([noise(first) for _ in range(4000)])
    assert x.shape == (4000, 3, 2)
    assert stats.kstest(x.flatten().numpy(), "norm", args=(0, 0.3)).pvalue > 1e-4
    for lagged in ((x[1:] * x[:-1]).mean(), (x[:, 0] * x[:, 1]).mean(), (x[..., 0] * x[..., 1]).mean()):
        assert abs(lagged) < 4 * 0.3**2 / 4000**0.5


def test_ou_noise_is_the_recursion() -> None:
    """x ← 0.85 x + 0.2 ε from x = 0, the white noise taken from an equal stream."""
    process, white = OUNoise(2, 0.2, stream()), stream()
    x = torch.zeros(3, 2)
    for step in range(5):
        first = torch.tensor([step == 0, step in (0, 3), step == 0])
        noise = process(first)
        for i in range(3):
            if first[i]:
                x[i] = 0.0
        x = 0.85 * x + 0.2 * torch.randn(3, 2, generator=white)
        assert torch.allclose(noise, x)


def test_ou_noise_has_the_stationary_statistics() -> None:
    process = OUNoise(1, 0.2, stream())
    first = torch.zeros(2000, dtype=torch.bool)
    x = torch.stack([process(first) for _ in range(60)])[40:, :, 0]
    assert x.mean().item() == pytest.approx(0, abs=0.05)
    assert x.var().item() == pytest.approx(0.2**2 / (1 - 0.85**2), rel=0.05)
    assert (x[1:] * x[:-1]).mean().item() == pytest.approx(0.85 * x.var().item(), rel=0.05)


def test_ou_noise_continues_from_its_saved_state() -> None:
    one, other = OUNoise(2, 0.2, stream()), OUNoise(2, 0.2, stream(1))
    go_on = torch.zeros(3, dtype=torch.bool)
    one(go_on)
    other.load_state_dict(one.state_dict())
    other.generator.set_state(one.generator.get_state())
    assert torch.equal(one(go_on), other(go_on))


def test_the_configured_noise() -> None:
    assert isinstance(action_noise("ou", 2, 0.2, stream()), OUNoise)
    assert isinstance(action_noise("gaussian", 2, 0.2, stream()), GaussianNoise)


@pytest.mark.parametrize("kind", ["gaussian", "ou"])
def test_ddpg_adds_the_noise_and_stays_within_bounds(make_agent: Any, kind: str) -> None:
    agent = make_agent("ddpg", noise=kind, noise_scale=0.8)
    twin = make_agent("ddpg", noise=kind, noise_scale=0.8)
    obs, first = torch.randn(50, 3, generator=stream()), torch.ones(50, dtype=torch.bool)
    for step in range(3):
        action = agent.explore(obs, step, first)
        assert torch.equal(action, (twin.act(obs) + twin.noise(first)).clamp(-1, 1))
        assert (action.abs() == 1).any()
    assert agent.exploration(7) == {"policy/noise_scale": 0.8}


def test_td3_explores_with_gaussian_noise_around_its_action(make_agent: Any) -> None:
    agent = make_agent("td3", noise_scale=0.05)
    obs = torch.zeros(20_000, 3)
    noise = agent.explore(obs, 0, torch.zeros(20_000, dtype=torch.bool)) - agent.act(obs)
    assert stats.kstest(noise.flatten().numpy(), "norm", args=(0, 0.05)).pvalue > 1e-4


def test_sac_explores_by_its_own_distribution(make_agent: Any) -> None:
    agent = make_agent("sac")
    obs = torch.zeros(5000, 3)
    with torch.no_grad():
        mean, log_std = agent.actor(obs[:1])
    standard = (agent.explore(obs, 0, None).atanh() - mean) / log_std.exp()
    assert stats.kstest(standard.flatten().numpy(), "norm").pvalue > 1e-4
    assert torch.allclose(agent.act(obs), mean.tanh().expand(5000, 2))


def test_dqn_follows_its_schedule(make_agent: Any) -> None:
    agent = make_agent("dqn", epsilon_min=0.0)  # linear to 0 over 50 of 100 steps
    obs, first = torch.randn(2000, 3, generator=stream()), torch.zeros(2000, dtype=torch.bool)
    greedy = agent.act(obs)
    assert torch.equal(agent.explore(obs, 50, first), greedy)
    assert (agent.explore(obs, 25, first) == greedy).float().mean().item() == pytest.approx(0.5 + 0.5 / 4, abs=0.05)
    assert (agent.explore(obs, 0, first) == greedy).float().mean().item() == pytest.approx(1 / 4, abs=0.05)
    assert agent.exploration(25) == {"charts/epsilon": 0.5}


def test_tabular_ties_are_broken_at_random_to_explore_and_by_index_to_evaluate() -> None:
    agent = QLearning(
        spec=Spec((), torch.int64, 2, 4, None, 1, None), seed=0, total_steps=10, gamma=0.9, learning_rate=0.5,
        learning_rate_decay=0.0, initial_q=0.0, epsilon_schedule="linear", epsilon_min=0.0, epsilon_fraction=0.5,
        epsilon_decay=1.0,
    )  # fmt: skip
    agent.table[0] = torch.tensor([1.0, 3.0, -1.0, 3.0])
    agent.table[1] = -5.0
    obs = torch.tensor([0, 1]).repeat(6000)
    chosen = agent.explore(obs, 10, None)  # ε = 0 by now
    tied, all_tied = (torch.bincount(chosen[obs == state], minlength=4) for state in (0, 1))
    assert tied[0] == tied[2] == 0
    assert stats.chisquare(tied[[1, 3]]).pvalue > 1e-4
    assert stats.chisquare(all_tied).pvalue > 1e-4
    assert torch.equal(agent.act(torch.tensor([0, 1])), torch.tensor([1, 0]))
