"""Behaviour: ε schedules, ε-greedy choice, repeated random actions, Gaussian and Ornstein-Uhlenbeck action noise."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from rl_runner.envs import Spec
from rl_runner.networks import Net, NetworkFactory


def epsilon_schedule(
    kind: Literal["linear", "multiplicative"], minimum: float, fraction: float, decay: float, total_steps: int
) -> Callable[[int], float]:
    """ε by environment step, from 1 to `minimum`.

    `linear`: in a straight line over the first `fraction` of the run (Mnih et al. 2015); `multiplicative`:
    ε ← max(ε_min, ε · decay) once per environment step.
    """
    if kind == "multiplicative":
        return lambda step: max(minimum, decay**step)
    duration = max(1.0, fraction * total_steps)
    return lambda step: 1.0 + (minimum - 1.0) * min(1.0, step / duration)


def epsilon_greedy(
    greedy: Callable[[Tensor], Tensor],
    obs: Tensor,
    epsilon: float,
    num_actions: int,
    generator: torch.Generator,
    extend: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda at_random, action: (at_random, action),
) -> Tensor:
    """With probability ε a uniformly random action, otherwise `greedy(obs)`; `[N, *obs]` to int64 `[N]` on the CPU.

    `extend` may replace which environments act at random, and how (`[N]` bool, int64).
    """
    dice = torch.rand(len(obs), generator=generator)
    random_action = torch.randint(num_actions, (len(obs),), generator=generator)
    at_random, random_action = extend(dice < epsilon, random_action)
    if at_random.all():
        return random_action
    return torch.where(at_random, random_action, greedy(obs))


class RepeatedActions:
    """Random actions that last: each is repeated n times, P(n) ∝ n^-μ (εz-greedy, Dabney et al. 2021, with μ = 2).

    Single random actions cancel out within a few steps; a few long pushes cross plateaus that those never leave. An
    action lasts at most `longest` steps and not beyond its episode. Without `mu` it lasts one step.
    """

    LONGEST = 10_000

    def __init__(self, mu: float | None, generator: torch.Generator, longest: int = LONGEST):
        self.mu, self.generator = mu, generator
        weights = torch.arange(1, longest + 1, dtype=torch.float64) ** -(mu or 0.0)
        totals = weights.cumsum(0)
        self.at_most = totals / totals[-1]  # P(duration ≤ n) at index n - 1
        self.action = self.left = torch.zeros(0, dtype=torch.int64)

    def extend(self, at_random: Tensor, action: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Who acts at random, and how, `[N]` each; `first` marks the environments whose episode has just begun."""
        if self.mu is None:
            return at_random, action
        if len(self.left) != len(first):
            self.action, self.left = torch.zeros_like(action), torch.zeros(len(first), dtype=torch.int64)
        dice = torch.rand(len(first), dtype=torch.float64, generator=self.generator)
        duration = 1 + torch.searchsorted(self.at_most, dice)
        goes_on = (self.left > 0) & ~first
        self.action = torch.where(goes_on.view(-1, *[1] * (action.dim() - 1)), self.action, action)
        self.left = torch.where(goes_on, self.left, duration * at_random) - 1
        return at_random | goes_on, self.action

    def hold(self, noise: Tensor, first: Tensor) -> Tensor:
        """Noise `[N, act]` of environments that all act by it; it lasts like random actions (FlashSAC)."""
        return self.extend(torch.ones(len(noise), dtype=torch.bool), noise, first)[1]

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.mu is None else {"action": self.action, "left": self.left}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.mu is not None:
            self.action, self.left = state["action"].clone(), state["left"].clone()


class GaussianNoise:
    """Independent N(0, scale²) on every action component (Fujimoto et al. 2018)."""

    PARTS = ()  # white noise has no memory

    def __init__(self, action_dim: int, scale: float, generator: torch.Generator):
        self.action_dim, self.scale, self.generator = action_dim, scale, generator

    def __call__(self, first: Tensor) -> Tensor:
        """Noise `[N, act]`; `first` `[N]` marks the environments whose episode has just begun."""
        return self.scale * torch.randn(len(first), self.action_dim, generator=self.generator)


class OUNoise:
    """x ← x - θx + σε, an Ornstein-Uhlenbeck process from 0 in every episode (Lillicrap et al. 2016)."""

    THETA = 0.15

    def __init__(self, action_dim: int, scale: float, generator: torch.Generator):
        self.action_dim, self.scale, self.generator = action_dim, scale, generator
        self.x = torch.zeros(0, action_dim)

    def __call__(self, first: Tensor) -> Tensor:
        """Noise `[N, act]`; `first` `[N]` marks the environments whose episode has just begun."""
        noise = torch.randn(len(first), self.action_dim, generator=self.generator)
        previous = self.x if len(self.x) == len(first) else torch.zeros_like(noise)
        previous = torch.where(first.unsqueeze(-1), 0.0, previous)
        self.x = (1 - self.THETA) * previous + self.scale * noise
        return self.x

    def state_dict(self) -> dict[str, Tensor]:
        return {"x": self.x}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.x = state["x"].clone()


def action_noise(
    kind: Literal["gaussian", "ou"], action_dim: int, scale: float, generator: torch.Generator
) -> GaussianNoise | OUNoise:
    """The configured noise process."""
    return (OUNoise if kind == "ou" else GaussianNoise)(action_dim, scale, generator)


class DeterministicActor(Net):
    """μ(s) in [-1, 1]: `[B, *obs]` to `[B, act]`."""

    def __init__(self, spec: Spec, network: NetworkFactory, encoder: Any, generator: torch.Generator):
        assert spec.action_dim is not None
        super().__init__(spec, network, encoder, generator, spec.action_dim)

    def forward(self, obs: Tensor, training: bool = False) -> Tensor:
        return torch.tanh(self.output(obs, training=training))


class NoisyPolicy:
    """What the agents with a deterministic actor share: they explore with noise on the action (DDPG, TD3)."""

    actor: Any
    critics: Any
    value: Any
    noise: GaussianNoise | OUNoise
    device: torch.device | str

    @torch.no_grad()
    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """clip(μ(s) + noise), `[N, act]`."""
        return self.behave(obs, self.noise(first)).cpu()

    def behave(self, obs: Tensor, noise: Tensor) -> Tensor:
        return (self.actor(obs.to(self.device)) + noise.to(self.device)).clamp(-1, 1)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """μ(s), `[N, act]`."""
        return self.actor(obs.to(self.device)).cpu()

    @torch.no_grad()
    def critique(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """μ(s) `[N, act]`, the critics' mean Q(s, μ(s)) `[N]` and no entropy bonus."""
        obs = obs.to(self.device)
        action = self.actor(obs)
        q = self.value.mean(self.critics(obs, action)).mean(dim=0).cpu()
        return action.cpu(), q, torch.zeros_like(q)

    def exploration(self, step: int) -> dict[str, float]:
        return {"policy/noise_scale": self.noise.scale}


def uniform_policy(spec: Spec, num_envs: int, stream: torch.Generator) -> Callable[[], Tensor]:
    """Uniformly random actions `[N]` or `[N, act]`."""
    if spec.num_actions is not None:
        return lambda: torch.randint(spec.num_actions or 0, (num_envs,), generator=stream)
    return lambda: torch.rand(num_envs, spec.action_dim or 0, generator=stream) * 2 - 1
