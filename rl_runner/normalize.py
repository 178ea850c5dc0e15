"""Observations and rewards on a common scale, by running statistics of all that the training environments gave.

What an environment gives stays in its own units in the replay, in returns and in every log; an agent alone sees it
scaled, in whatever it does. The statistics are its part `running_scales`: saved and exported with its networks.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_runner.config.schema import Config
from rl_runner.envs import Spec, Step
from rl_runner.replay import Batch

CLIP = 10.0  # of normalised observations, in either direction
EPSILON = 1e-8  # added to variances
# What agents log in units of returns; losses and gradients are those of what is learned.
OF_RETURNS = ("values/q_mean", "values/q_min", "values/q_max", "values/target_mean")


class Moments:
    """Mean and variance of all rows so far, each counted once, in float64 (Chan, Golub & LeVeque 1983)."""

    PARTS = ("count", "mean", "squares")

    def __init__(self, shape: tuple[int, ...] = ()):
        self.count, self.mean = 0, torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)  # sum of squared deviations from the mean
        self._arrays = self.mean.numpy(), self.squares.numpy()  # the same memory, in half the time for a few numbers

    def add(self, rows: np.ndarray) -> None:
        """Count rows `[N, *shape]` of float64."""
        mean, squares = self._arrays
        self.count += len(rows)
        apart = rows - mean
        moved = apart.sum(axis=0) / self.count
        squares += (apart * (apart - moved)).sum(axis=0)
        mean += moved

    @property
    def std(self) -> np.ndarray:
        """√(variance + ε), of the biased variance."""
        return np.sqrt(self._arrays[1] / self.count + EPSILON)


class Observations:
    """(s - mean) / std, clipped to ±10."""

    PARTS = ("moments", "mean", "std")

    def __init__(self, spec: Spec, device: torch.device | str):
        self.moments = Moments(spec.obs_shape)
        # Written in place, for a graph reads them.
        self.mean, self.std = torch.zeros(spec.obs_shape, device=device), torch.ones(spec.obs_shape, device=device)

    def count(self, obs: Tensor) -> None:
        """Take note of observations `[N, *obs]`."""
        self.moments.add(obs.numpy().astype(np.float64))
        self.mean.copy_(self.moments.mean)
        self.std.copy_(torch.from_numpy(self.moments.std))

    def __call__(self, obs: Tensor) -> Tensor:
        return ((obs.to(self.mean.device) - self.mean) / self.std).clamp(-CLIP, CLIP)


class Rewards:
    """r / max(√(Var G + ε), max |G| / g_max), with G ← γG + r in each environment (SimbaV2, Lee et al. 2025).

    G begins at 0 in every episode, however the one before has ended. No such sum of past rewards is beyond ±g_max.
    """

    PARTS = ("moments", "returns", "largest", "scale")

    def __init__(self, num_envs: int, gamma: float, g_max: float, device: torch.device | str):
        self.gamma, self.g_max, self.moments = gamma, g_max, Moments()
        self.returns = torch.zeros(num_envs, dtype=torch.float64)
        self.largest = torch.zeros((), dtype=torch.float64)
        self.scale = torch.ones((), device=device)  # by which rewards are divided; written in place, too

    def count(self, reward: Tensor, first: Tensor) -> None:
        """Take note of one step of every environment, `[N]` each; `first` marks the first steps of episodes."""
        returns = self.returns.numpy()
        returns *= self.gamma * ~first.numpy()
        returns += reward.numpy()
        self.moments.add(returns)
        largest = max(float(self.largest), float(np.abs(returns).max()))
        self.largest.fill_(largest)
        self.scale.fill_(max(float(self.moments.std), largest / self.g_max))


class Normalizer:
    """The statistics that an agent has, and what stands between it and the environment's units."""

    def __init__(self, config: Config, spec: Spec, agent: Any):
        device, g_max = getattr(agent, "device", "cpu"), config.normalize_rewards
        self.observations = Observations(spec, device) if config.normalize_observations else None
        self.rewards = Rewards(config.num_envs, agent.gamma, g_max, device) if g_max else None
        self.PARTS = [name for name, part in vars(self).items() if part]

    def count(self, obs: Tensor, first: Tensor, reward: Tensor, step: Step) -> None:
        """Take note of what one environment step showed: every observation once, final ones too."""
        if self.observations:
            ended = step.terminated | step.truncated
            self.observations.count(torch.cat([obs, step.next_obs[ended]]) if step.episodes else obs)
        if self.rewards:
            self.rewards.count(reward, first)

    def attach(self, agent: Any) -> None:
        """Let an agent see all of it scaled, and tell values in the environment's units."""
        if not hasattr(agent, "PARTS"):
            both = {name: getattr(agent, name) for name in ("state_dict", "load_state_dict")}
            agent.own, agent.PARTS = SimpleNamespace(**both), ("own",)
        agent.running_scales, agent.PARTS = self, (*agent.PARTS, "running_scales")
        learns = "learn" if hasattr(agent, "learn") else "update"
        setattr(agent, learns, self._learning(getattr(agent, learns)))
        if self.rewards and hasattr(agent, "critique"):
            agent.critique = self._judging(agent.critique, self.rewards)
        for name in ("explore", "act", "critique"):
            if self.observations and hasattr(agent, name):
                setattr(agent, name, self._seeing(getattr(agent, name), self.observations))

    def _learning(self, learn: Callable[..., Any]) -> Callable[..., Any]:
        observations, rewards = self.observations, self.rewards

        def call(batch: Batch, *rest: Any) -> Any:
            if observations:
                batch = batch._replace(obs=observations(batch.obs), next_obs=observations(batch.next_obs))
            if not rewards:
                return learn(batch, *rest)
            metrics, td_error = learn(batch._replace(reward=batch.reward / rewards.scale), *rest)
            return metrics | {tag: metrics[tag] * rewards.scale for tag in OF_RETURNS if tag in metrics}, td_error

        return call

    def _judging(self, critique: Callable[..., Any], rewards: Rewards) -> Callable[..., Any]:
        def call(obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            action, q, bonus = critique(obs, generator)
            scale = rewards.scale.to(q.device)
            return action, q * scale, bonus * scale

        return call

    def _seeing(self, method: Callable[..., Any], observations: Observations) -> Callable[..., Any]:
        def call(obs: Tensor, *rest: Any, **named: Any) -> Any:
            return method(observations(obs), *rest, **named)

        return call
