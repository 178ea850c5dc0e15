"""The truth about tabular environments that expose their transition model: Q*, and the value of a policy, by DP."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

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
    except Exception:  # no attributes of these names, or ones that mean something else
        return None


def _toy_text(env: gym.Env) -> Model | None:
    inner: Any = env.unwrapped
    spaces, outcomes = (inner.observation_space, inner.action_space), inner.P
    if not isinstance(outcomes, dict) or not all(isinstance(space, Discrete) for space in spaces):
        return None
    if getattr(inner, "fickle_passenger", False):  # Taxi's passenger who changes his mind is not in its P
        return None
    S, A = (int(space.n) for space in spaces)
    initial = np.asarray(inner.initial_state_distrib, dtype=np.float64)
    if outcomes.keys() != set(range(S)) or initial.shape != (S,):
        return None
    from scipy.sparse import csr_array  # only tables wait for it
    from scipy.sparse.csgraph import dijkstra

    reward = np.zeros((S, A))
    rows, columns, probabilities = [], [], []
    for s, a in np.ndindex(S, A):
        for probability, successor, r, terminated in outcomes[s][a]:
            reward[s, a] += probability * r
            if probability and not terminated:
                rows.append(s * A + a)
                columns.append(int(successor))
                probabilities.append(probability)
    transition = csr_array((probabilities, (rows, columns)), shape=(S * A, S))
    following = csr_array((np.ones(len(rows)), (np.array(rows) // A, columns)), shape=(S, S))
    steps = dijkstra(following, indices=np.flatnonzero(initial), unweighted=True, min_only=True)
    limit = env.spec.max_episode_steps if env.spec else None
    return Model(transition, reward, initial, np.isfinite(steps), limit or EVAL_LIMIT)


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
