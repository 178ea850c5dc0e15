"""Deterministic evaluation beside training: returns, the bias of the critic's estimates, exact tabular errors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rl_runner import exact
from rl_runner.config.schema import EnvConfig
from rl_runner.envs import EVAL_LIMIT, Envs
from rl_runner.protocols import Agent
from rl_runner.seeding import generator

MAX_PARALLEL = 10  # episodes played in lockstep

Choice = tuple[Tensor, Tensor, Tensor]  # action, the critic's estimate of it [N], entropy bonus [N]
Policy = Callable[[Tensor], Choice]


@dataclass
class Episode:
    """One evaluated episode of T steps."""

    rewards: np.ndarray  # [T]
    estimates: np.ndarray  # [T + 1]; Q of the action taken in each state, the final one included
    bonuses: np.ndarray  # [T + 1]; -α log π of that action, 0 for policies without entropy
    terminated: bool


class Evaluator:
    """Plays episodes in environments of its own, whose seeds are the same at every evaluation."""

    def __init__(self, env: EnvConfig, seed: int, gamma: float, episodes: int, rebuild: bool = False):
        self.gamma, self.seed = gamma, seed
        self.envs = Envs(env, min(episodes, MAX_PARALLEL), seed, "eval", auto_reset=False, rebuild=rebuild)
        self.limit = self.envs.spec.max_episode_steps or EVAL_LIMIT
        self.model = exact.model_of(self.envs.envs[0])

    def __call__(self, agent: Agent, episodes: int) -> tuple[dict[str, float], list[float]]:
        """The `eval/*` metrics and the return of each episode."""
        critique = getattr(agent, "critique", None)
        stochastic = getattr(agent, "stochastic", False)
        stream = generator(self.seed, "eval")
        judged: Policy | None = critique and (lambda obs: critique(obs, stream))
        policy = judged if judged is not None and not stochastic else _without_critic(agent)
        played = self._play(policy, episodes)
        returns = [float(episode.rewards.sum()) for episode in played]
        metrics = {
            "eval/return_mean": float(np.mean(returns)),
            "eval/return_std": float(np.std(returns)),
            "eval/length_mean": float(np.mean([len(episode.rewards) for episode in played])),
        }
        if judged is not None:
            on_policy = self._play(judged, min(episodes, MAX_PARALLEL)) if stochastic else played
            metrics["eval/q_bias"] = q_bias(on_policy, self.gamma)
        table = getattr(agent, "table", None)
        if table is not None and self.model is not None:
            q = table.numpy()
            metrics["values/q_error_max"] = exact.q_error_max(self.model, q, self.gamma)
            metrics["eval/exact_return"] = exact.exact_return(self.model, q.argmax(axis=1))
        return metrics, returns

    def _play(self, policy: Policy, episodes: int) -> list[Episode]:
        played: list[Episode] = []
        while len(played) < episodes:
            played += self._play_one_each(policy, wave=len(played) // self.envs.num_envs)
        return played[:episodes]

    def _play_one_each(self, policy: Policy, wave: int) -> list[Episode]:
        """Episode `wave` of every environment, in lockstep; those that have ended rest."""
        envs = self.envs
        envs.reset(wave)
        lengths = np.zeros(envs.num_envs, dtype=int)
        terminated = np.zeros(envs.num_envs, dtype=bool)
        rewards: list[Tensor] = []
        estimates: list[Tensor] = []
        bonuses: list[Tensor] = []
        while envs.active.any() and len(rewards) < self.limit:
            lengths += envs.active.numpy()
            action, estimate, bonus = policy(envs.obs)
            step = envs.step(action)
            terminated |= step.terminated.numpy()
            rewards.append(step.reward)
            estimates.append(estimate)
            bonuses.append(bonus)
        _, estimate, bonus = policy(envs.obs)
        r = torch.stack(rewards).double().numpy()
        q = torch.stack([*estimates, estimate]).double().numpy()
        b = torch.stack([*bonuses, bonus]).double().numpy()
        return [
            Episode(r[:length, i], q[: length + 1, i], b[: length + 1, i], bool(terminated[i]))
            for i, length in enumerate(lengths)
        ]


def q_bias(episodes: list[Episode], gamma: float) -> float:
    """Mean of the critic's estimate minus the discounted return that followed, over the pairs of the episodes.

    Terminated episodes count all their pairs. Of cut ones the first half counts, their tail closed with
    γ^k V(s_T), which understates the bias by at most a factor γ^(T/2). Entropy bonuses count from the second step on.
    """
    differences = []
    for episode in episodes:
        T = len(episode.rewards)
        tail = 0.0 if episode.terminated else episode.estimates[T] + episode.bonuses[T]
        returns = np.empty(T)
        for t in reversed(range(T)):
            returns[t] = episode.rewards[t] + gamma * tail
            tail = returns[t] + episode.bonuses[t]
        counted = T if episode.terminated else (T + 1) // 2
        differences.append(episode.estimates[:counted] - returns[:counted])
    return float(np.concatenate(differences).mean())


def _without_critic(agent: Agent) -> Policy:
    def policy(obs: Tensor) -> Choice:
        nothing = torch.zeros(len(obs))
        return agent.act(obs), nothing, nothing

    return policy
