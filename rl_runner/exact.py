"""The truth about tabular environments that expose their transition model: Q*, and the value of a policy, by DP."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete

from rl_runner.envs import EVAL_LIMIT

if TYPE_CHECKING:
    from scipy.sparse import csr_array

MAX_SWEEPS = 100_000  # of value iteration; only an undiscounted problem without a solution comes near


@dataclass(frozen=True, eq=False)
class Model:
    """A finite Markov decision process of S states and A actions."""

    transition: "csr_array"  # [S*A, S]; probability of going on in s'; an outcome that terminates goes on nowhere
    reward: np.ndarray  # [S, A]; expected
    initial: np.ndarray  # [S]; distribution of the first state
    reachable: np.ndarray  # [S] bool; the non-terminal states that an episode can visit
    horizon: int  # time limit in steps


def model_of(env: gym.Env) -> Model | None:
    """The model of an environment with Gymnasium's toy-text attributes `P` and `initial_state_distrib`, else None."""
    try:
        return _toy_text(env)
    except Exception:  # attributes of these names that mean something else
        return None


def _toy_text(env: gym.Env) -> Model | None:
    inner = env.unwrapped
    outcomes, initial = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    observation, action = inner.observation_space, inner.action_space
    if not isinstance(outcomes, dict) or initial is None:
        return None
    if not isinstance(observation, Discrete) or not isinstance(action, Discrete):
        return None
    if getattr(inner, "fickle_passenger", False):  # Taxi's passenger who changes his mind is not in its P
        return None
    S, A = int(observation.n), int(action.n)
    if outcomes.keys() != set(range(S)) or np.shape(initial) != (S,):
        return None
    from scipy.sparse import csr_array  # only tables wait for it

    reward = np.zeros((S, A))
    rows, columns, probabilities = [], [], []
    for s, actions in outcomes.items():
        for a, results in actions.items():
            for probability, successor, r, terminated in results:
                reward[s, a] += probability * r
                if not terminated:
                    rows.append(s * A + a)
                    columns.append(int(successor))
                    probabilities.append(probability)
    transition = csr_array((probabilities, (rows, columns)), shape=(S * A, S))
    initial = np.asarray(initial, dtype=np.float64)
    limit = env.spec.max_episode_steps if env.spec else None
    return Model(transition, reward, initial, _reachable(transition, initial, A), limit or EVAL_LIMIT)


@lru_cache(maxsize=1)
def optimal_q(model: Model, gamma: float) -> np.ndarray:
    """Q* [S, A] without the time limit, by value iteration; off by at most 1e-12 γ / (1 - γ)."""
    q = np.zeros_like(model.reward)
    for _ in range(MAX_SWEEPS):
        previous = q
        q = model.reward + gamma * (model.transition @ q.max(axis=1)).reshape(q.shape)
        if np.abs(q - previous)[model.reachable].max() <= 1e-12:
            break
    return q


def q_error_max(model: Model, q: np.ndarray, gamma: float) -> float:
    """max |Q - Q*| over the reachable non-terminal states; q [S, A]."""
    return float(np.abs(q - optimal_q(model, gamma))[model.reachable].max())


def exact_return(model: Model, policy: np.ndarray) -> float:
    """The expected undiscounted return, within the time limit, of a deterministic policy [S] of actions."""
    states = np.arange(len(policy))
    reward = model.reward[states, policy]
    transition = model.transition[states * model.reward.shape[1] + policy]
    value = np.zeros(len(policy))
    for _ in range(model.horizon):
        value = reward + transition @ value
    return float(model.initial @ value)


def _reachable(transition: "csr_array", initial: np.ndarray, num_actions: int) -> np.ndarray:
    found = initial > 0
    while True:
        successors = found | (transition.T @ np.repeat(found, num_actions).astype(np.float64) > 0)
        if (successors == found).all():
            return found
        found = successors
