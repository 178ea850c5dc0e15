"""The exact tabular truth, against published optima and against simulation."""

import gymnasium as gym
import numpy as np
import pytest

from rl_runner.exact import exact_return, model_of, optimal_q, q_error_max


def model(env_id, **kwargs):
    found = model_of(gym.make(env_id, **kwargs))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("env_id", "gamma", "optimum", "tolerance"),
    [
        ("FrozenLake-v1", 0.99, 0.740165, 5e-7),
        ("FrozenLake8x8-v1", 0.99, 0.862955, 5e-7),
        ("FrozenLake8x8-v1", 0.999, 0.885654, 5e-7),
        ("Taxi-v4", 0.99, 7.93, 5e-3),
        ("CliffWalking-v1", 0.99, -13, 1e-9),
    ],
)
def test_return_of_the_optimal_policy(env_id, gamma, optimum, tolerance):
    mdp = model(env_id)
    assert exact_return(mdp, optimal_q(mdp, gamma).argmax(axis=1)) == pytest.approx(optimum, abs=tolerance)


@pytest.mark.parametrize(("env_id", "value"), [("FrozenLake-v1", 0.542026), ("FrozenLake8x8-v1", 0.414640)])
def test_optimal_value_of_the_first_state(env_id, value):
    assert optimal_q(model(env_id), 0.99)[0].max() == pytest.approx(value, abs=5e-7)


def test_optimal_q_solves_the_bellman_equation():
    mdp = model("Taxi-v4")
    q = optimal_q(mdp, 0.99)
    P = gym.make("Taxi-v4").unwrapped.P
    for s, a in [(0, 5), (123, 2), (472, 4)]:
        expected = sum(p * (r + 0.99 * (not end) * q[t].max()) for p, t, r, end in P[s][a])
        assert q[s, a] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("env_id", "reachable"), [("Taxi-v4", 400), ("FrozenLake-v1", 11), ("CliffWalking-v1", 37)])
def test_reachable_states_are_those_that_an_episode_can_act_in(env_id, reachable):
    assert model(env_id).reachable.sum() == reachable


def test_error_is_the_largest_over_reachable_states_only():
    mdp = model("FrozenLake-v1")
    q = optimal_q(mdp, 0.99).copy()
    q[5] += 100  # a hole: the episode is over there
    q[4, 1] -= 0.25
    q[8, 2] += 0.125
    assert q_error_max(mdp, q, 0.99) == pytest.approx(0.25)


def test_return_counts_the_time_limit():
    right = np.full(16, 2)
    short = exact_return(model("FrozenLake-v1", max_episode_steps=3), right)
    assert short == 0  # the goal is six steps away
    assert exact_return(model("FrozenLake-v1"), right) > 0


def test_endless_policy_without_a_time_limit_is_cut_at_the_evaluation_limit():
    assert exact_return(model("CliffWalking-v1"), np.full(48, 3)) == -1000  # left, against the wall


def test_return_agrees_with_simulation():
    mdp, policy = model("FrozenLake-v1"), np.full(16, 1)
    env = gym.make("FrozenLake-v1")
    returns = []
    for episode in range(2000):
        state, total, over = env.reset(seed=episode)[0], 0.0, False
        while not over:
            state, reward, terminated, truncated, _ = env.step(policy[state])
            total, over = total + reward, terminated or truncated
        returns.append(total)
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - exact_return(mdp, policy)) < 4 * error


def test_no_model_where_there_is_none_or_where_it_is_not_the_truth():
    assert model_of(gym.make("CartPole-v1")) is None
    assert model_of(gym.make("Blackjack-v1")) is None
    assert model_of(gym.make("Taxi-v4", fickle_passenger=True)) is None
