"""Deterministic evaluation beside training: returns, the bias of the critic's estimates, exact tabular errors."""

import math
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit
from torch import Tensor

from rl_runner import exact
from rl_runner.beside import Beside
from rl_runner.config.schema import Config, EnvConfig
from rl_runner.envs import EVAL_LIMIT, Envs
from rl_runner.errors import RunFailed
from rl_runner.explore import uniform_policy
from rl_runner.protocols import Agent
from rl_runner.seeding import generator

MAX_PARALLEL = 10  # episodes played in lockstep
JUDGED = 10  # episodes at most that the critic is measured on
TAIL = 0.001  # an episode that was cut is played on for k steps, until γ^k, the weight of what follows, is this small
FARTHEST = 3_000  # k at most: enough for γ up to 0.9977

Choice = tuple[Tensor, Tensor, Tensor]  # action, the critic's estimate of it [N], entropy bonus [N]
Policy = Callable[[Tensor], Choice]


@dataclass
class Episode:
    """One evaluated episode of T steps, and those that were played beyond its time limit, K in all."""

    rewards: np.ndarray  # [K]
    estimates: np.ndarray  # [K + 1]; Q of the action taken in each state, the final one included
    bonuses: np.ndarray  # [K + 1]; -α log π of that action, 0 for policies without entropy
    length: int  # T
    terminated: bool  # by the last of the K steps
    settled: bool  # whether what follows the K steps is nothing, or weighs next to nothing


class Evaluator:
    """Plays episodes in environments of its own, whose seeds are the same at every evaluation.

    `max_steps`: of an episode where the environment has no limit. `epsilon`: the chance of a random action; the bias of
    the critic is measured without. `clip`: the largest reward that the critic has learned from, in either direction.
    """

    def __init__(
        self,
        env: EnvConfig,
        seed: int,
        gamma: float,
        episodes: int,
        rebuild: bool = False,
        *,
        max_steps: int = EVAL_LIMIT,
        epsilon: float = 0.0,
        clip: float | None = None,
    ):
        self.gamma, self.seed, self.epsilon, self.clip = gamma, seed, epsilon, clip
        self.envs = Envs(env, min(episodes, MAX_PARALLEL), seed, "eval", auto_reset=False, rebuild=rebuild)
        self.model = None if env.wrappers else exact.model_of(self.envs.envs[0])  # which they may change
        self.limit = min([self.envs.spec.max_episode_steps or max_steps, *_lift_time_limits(self.envs.envs[0])])
        # k; all pairs within the limit are then followed by at least k + 1 rewards.
        self.beyond = next((k for k in range(FARTHEST + 1) if gamma ** (k + 1) <= TAIL), math.inf)
        self._unknown, self._said = f"gamma={gamma} looks more than {FARTHEST:,} steps ahead", False
        self._beside: Beside | None = None

    def __call__(self, agent: Agent, episodes: int) -> tuple[dict[str, float], list[float]]:
        """The `eval/*` metrics and the return of each episode."""
        nothing = torch.zeros(self.envs.num_envs)
        judged: Policy | None = None
        if critique := getattr(agent, "critique", None):
            judged = partial(critique, generator=generator(self.seed, "critique"))
        apart = getattr(agent, "stochastic", False) or self.epsilon > 0  # from the policy that the critic judges
        if judged is None or apart:
            act = self._sometimes_random(agent.act)
            played = self._play(lambda obs: (act(obs), nothing, nothing), episodes)
        else:
            played = self._play(judged, episodes, play_on=True)
        returns = [float(episode.rewards[: episode.length].sum()) for episode in played]
        metrics = {
            "eval/return_mean": float(np.mean(returns)),
            "eval/return_std": float(np.std(returns)),
            "eval/length_mean": float(np.mean([episode.length for episode in played])),
        }
        if judged is not None:
            on_policy = self._play(judged, min(episodes, JUDGED), play_on=True) if apart else played[:JUDGED]
            if self.clip is not None:
                on_policy = [replace(each, rewards=each.rewards.clip(-self.clip, self.clip)) for each in on_policy]
            metrics |= q_bias(on_policy, self.gamma)
            if "eval/q_bias" not in metrics and not self._said:
                self._said = True
                print(f"no eval/q_bias where episodes are cut: {self._unknown}", file=sys.stderr)
        table = getattr(agent, "table", None)
        if table is not None and self.model is not None:
            q = table.numpy()
            metrics["values/q_error_max"] = exact.q_error_max(self.model, q, self.gamma)
            metrics["eval/exact_return"] = exact.exact_return(self.model, q.argmax(axis=1))
        return metrics, returns

    def beside(self, agent: Agent, episodes: int) -> Beside | None:
        """The same metrics, worked out beside what this process goes on with; one evaluation after the other.

        None where the system has no room for another process.
        """
        if self._beside:
            self._beside.result  # noqa: B018 - waits

        def work() -> tuple[dict[str, float], bool]:
            return self(agent, episodes)[0], self._said

        def take(answer: tuple[dict[str, float], bool]) -> dict[str, float]:
            metrics, self._said = answer
            return metrics

        self._beside = None
        with suppress(OSError):
            self._beside = Beside(work, take)
        return self._beside

    def _sometimes_random(self, act: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        if not self.epsilon:
            return act
        stream = generator(self.seed, "evaluation")
        random_action = uniform_policy(self.envs.spec, self.envs.num_envs, stream)

        def choose(obs: Tensor) -> Tensor:
            action, instead = act(obs), torch.rand(len(obs), generator=stream) < self.epsilon
            return torch.where(instead.view(-1, *[1] * (action.dim() - 1)), random_action(), action)

        return choose

    def _play(self, policy: Policy, episodes: int, play_on: bool = False) -> list[Episode]:
        played: list[Episode] = []
        while len(played) < episodes:
            play_on = play_on and len(played) < JUDGED and all(episode.settled for episode in played)
            played += self._play_one_each(policy, len(played) // self.envs.num_envs, play_on)
        return played[:episodes]

    def _play_one_each(self, policy: Policy, wave: int, play_on: bool) -> list[Episode]:
        """Episode `wave` of every environment, in lockstep; those that have ended rest.

        With `play_on`, those that the limit cuts go on until their returns are known, or `_unknown` says why not.
        """
        envs = self.envs
        envs.reset(wave)
        for env in envs.envs:
            _lift_time_limits(env)
        end = self.limit + (self.beyond if play_on and self.beyond < math.inf else 0)
        steps, terminated = np.zeros(envs.num_envs, dtype=int), np.zeros(envs.num_envs, dtype=bool)
        rewards: list[Tensor] = []
        choices = [policy(envs.obs)]
        while envs.active.any() and len(rewards) < end:
            active = envs.active.numpy()
            try:
                step = envs.step(choices[-1][0])
            except RunFailed as error:
                if len(rewards) < self.limit:
                    raise
                self._unknown = str(error)
                break
            steps += active
            terminated |= step.terminated.numpy()
            if step.truncated.any():
                self._unknown, end = "the environment itself truncates them, so nothing can follow", self.limit
            rewards.append(step.reward)
            choices.append(policy(envs.obs))
        _, estimates, bonuses = zip(*choices, strict=True)
        r, q, b = (torch.stack(column).double().numpy() for column in (rewards, estimates, bonuses))
        settled = terminated | ((steps - self.limit).clip(0) >= self.beyond)
        return [
            Episode(r[:K, i], q[: K + 1, i], b[: K + 1, i], min(K, self.limit), bool(terminated[i]), bool(settled[i]))
            for i, K in enumerate(steps.tolist())
        ]


def evaluator_of(config: Config, gamma: float, rebuild: bool) -> Evaluator:
    """The evaluator that a config asks for, of a critic that discounts by `gamma`."""
    return Evaluator(
        config.env,
        config.seed,
        gamma,
        config.eval_episodes,
        rebuild,
        max_steps=config.eval_max_steps,
        epsilon=config.eval_epsilon,
        clip=config.clip_rewards,
    )


def q_bias(episodes: list[Episode], gamma: float) -> dict[str, float]:
    """Mean of the critic's estimate minus the discounted return that followed, over the T pairs of each episode.

    Also relative to the size of that return's mean (as Chen et al. 2021, REDQ). Nothing unless every return is known:
    those of terminated episodes to the end, those of cut ones to where what follows weighs γ^k <= 0.001. That rest is
    closed with the critic's own value: what is missed is then a thousandth of the critic's error there, while leaving
    it out would miss a thousandth of the value itself, which may be a hundred errors. Entropy bonuses count from the
    second step on.
    """
    if not all(episode.settled for episode in episodes):
        return {}
    errors, values = [], []
    for episode in episodes:
        tail = 0.0 if episode.terminated else episode.estimates[-1] + episode.bonuses[-1]
        returns = np.empty(len(episode.rewards))
        for t in reversed(range(len(returns))):
            returns[t] = episode.rewards[t] + gamma * tail
            tail = returns[t] + episode.bonuses[t]
        values.append(returns[: episode.length])
        errors.append(episode.estimates[: episode.length] - values[-1])
    bias, size = float(np.concatenate(errors).mean()), abs(float(np.concatenate(values).mean()))
    return {"eval/q_bias": bias} | ({"eval/q_bias_relative": bias / size} if size else {})


def _lift_time_limits(env: gym.Env) -> list[int]:
    """Let episodes go on beyond the limits that Gymnasium's wrapper sets, which are returned."""
    limits = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TimeLimit):
            limits.append(env._max_episode_steps)
            env._max_episode_steps = sys.maxsize
        env = env.env
    return limits
