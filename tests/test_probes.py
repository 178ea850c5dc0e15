"""Probe environments: each can be learnt only by an agent that gets one thing right, in seconds."""

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from killing import DISCRETE_SAC

from rl_runner import accelerate
from rl_runner.run import build
from rl_runner.train import Run, train

DISCRETE = ("q_learning", "dqn", "ddqn", "c51", "qrdqn", "munchausen", "rainbow", "discrete_sac", "discrete_tqc")
AGENTS = (
    *DISCRETE,
    "ddpg",
    "d4pg",
    "td3",
    "sac",
    "tqc",
    "crossq",
    "xqc_small",
    "redq",
    "droq",
    "simba",
    "bro_fast",
    "flashsac",
)
DEAR = {"crossq", "xqc_small", "redq", "flashsac"}  # seconds a run
DEAREST = {"droq", "simba", "bro_fast"}


def case(algo: str, *more: int) -> Any:
    """A test's arguments; slow where it takes long and others test nearly the same."""
    slow = algo in DEAREST or (more > (1,) and algo in DEAR)
    return pytest.param(algo, *more, marks=pytest.mark.slow if slow else ())


SINGLE_AND_SEVERAL = [case(algo, n) for algo in AGENTS for n in (1, 4)]
DEEP = ("network.hidden=[16]", "optimizer.lr=1e-2", "algo.batch_size=16", "algo.tau=0.1", "replay.capacity=400",
        "learning_starts=32", "total_steps=400")  # fmt: skip
# Estimates through running statistics move by some hundredths from update to update, and differ between processors.
TOLERANCE = {"crossq": 3, "xqc_small": 3, "flashsac": 3}
BLOCKS = ("actor_network.width=16", "critic_network.width=16", "critic_network.blocks=1", "algo.alpha=1e-3", *DEEP[1:])
BOUNDS = ("value.atoms=21", "value.v_min=-4", "value.v_max=4")
WORDS = {
    "q_learning": ("algo.learning_rate_decay=0", "algo.learning_rate=0.2", "total_steps=400"),
    "dqn": (*DEEP, "algo.target_every=10"),
    "ddqn": (*DEEP, "algo.target_every=10"),
    "c51": (*DEEP, "algo.target_every=10", *BOUNDS),
    "qrdqn": (*DEEP, "algo.target_every=10", "value.quantiles=5"),
    "munchausen": (*DEEP, "algo.target_every=10", "algo.munchausen=1e-3", "algo.temperature=1e-2"),  # next to DQN
    "rainbow": (*DEEP, "algo.target_every=10", "replay.n_step=1", *BOUNDS),
    "discrete_sac": (*DEEP, "algo.alpha=1e-3"),
    "discrete_tqc": (*DEEP, "algo.alpha=1e-3", "value.quantiles=5", "value.drop=1"),
    "ddpg": (*DEEP, "algo.noise_scale=0.5"),
    "d4pg": (*DEEP, "algo.noise_scale=0.5", "replay.n_step=1", *BOUNDS),
    "td3": (*DEEP, "algo.noise_scale=0.5"),
    "sac": (*DEEP, "algo.alpha=1e-3"),  # entropy adds next to nothing to the values
    "tqc": (*DEEP, "algo.alpha=1e-3", "value.quantiles=5", "value.drop=1"),
    "crossq": (*DEEP, "algo.batch_size=64", "algo.alpha=1e-3", "total_steps=1000"),  # running statistics need longer
    "xqc_small": (*DEEP, "actor_network.hidden=[16]", "critic_network.hidden=[16]", "algo.alpha=1e-3", *BOUNDS,
                  "normalize_rewards=null", "total_steps=1000"),  # G ends with a time limit
    "simba": BLOCKS,
    "bro_fast": (*BLOCKS, "value.quantiles=5", "algo.reset_at=[100]"),
    "flashsac": (*BLOCKS, "algo.batch_size=64", *BOUNDS, "normalize_rewards=null", "total_steps=1000"),
    "redq": (*DEEP, "algo.alpha=1e-3", "updates=2", "algo.policy_delay=2"),
    "droq": (*DEEP, "algo.alpha=1e-3", "updates=2", "algo.policy_delay=2"),
}  # fmt: skip


class Probe(gym.Env):
    """A corridor of `length` states, left one by one; the observation is the state's number.

    Pays 1 for the last step, or in every step how near the action is to the right one; ends by termination, or is cut.
    """

    def __init__(self, tabular: bool, discrete: bool, length: int = 1, by_action: bool = False, cut: bool = False):
        self.observation_space = spaces.Discrete(length + 1) if tabular else spaces.Box(0, length, (1,), np.float32)
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-4.0, 2.0, (2,), np.float32)
        self.length, self.by_action, self.cut = length, by_action, cut

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.state = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.state += 1
        over = self.state == self.length
        reward = self._nearness(action) if self.by_action else float(over)
        return self._observe(), reward, over and not self.cut, over and self.cut, {}

    def _nearness(self, action: Any) -> float:
        """1 for the right action, less for others: number 1, or (0.5, -2.5), which the agent calls (0.5, -0.5)."""
        if isinstance(self.action_space, spaces.Discrete):
            return float(action == 1)
        return 1 - float(np.square((action - [0.5, -2.5]) / 3).sum())

    def _observe(self) -> Any:
        # A cut episode looks the same before and after: only the ending tells them apart.
        state = 0 if self.cut else self.state
        return state if isinstance(self.observation_space, spaces.Discrete) else np.array([state], np.float32)


@pytest.fixture(autouse=True)
def probe() -> Iterator[None]:
    gym.register("Probe-v0", Probe)
    yield
    del gym.registry["Probe-v0"]


def trained(configure: Any, algo: str, *words: str, **kwargs: Any) -> Run:
    kwargs |= {"tabular": algo == "q_learning", "discrete": algo in DISCRETE}
    env = ",".join(f"{key}:{str(value).lower()}" for key, value in kwargs.items())
    common = ("env=Probe-v0", f"+env.kwargs={{{env}}}", "device=cpu", "eval_every=0", "log_every=10000")
    name = f"algo={algo.removeprefix('discrete_')}"
    words = (*DISCRETE_SAC, *words) if algo.startswith("discrete_") else words
    run = build(configure(name, *common, *WORDS[algo], *words), None)
    train(run, accelerate.build_update(run.agent, run.replay, run.averages, "eager"), lambda *row: None, lambda: None)
    return run


def values(run: Run, *states: int) -> list[float]:
    """The critic's estimate of the evaluated action in each state."""
    obs = torch.tensor(states) if run.envs.spec.num_states else torch.tensor(states, dtype=torch.float32).unsqueeze(1)
    agent: Any = run.agent
    return agent.critique(obs, torch.Generator().manual_seed(0))[1].tolist()


@pytest.mark.parametrize("algo", [case(algo) for algo in AGENTS])
def test_one_step_of_reward_one_is_worth_one(configure: Any, algo: str) -> None:
    run = trained(configure, algo, "algo.gamma=0.8")
    assert values(run, 0) == pytest.approx([1.0], abs=0.05 * TOLERANCE.get(algo, 1))


@pytest.mark.parametrize(("algo", "num_envs"), SINGLE_AND_SEVERAL)
def test_a_reward_after_two_steps_is_worth_gamma(configure: Any, algo: str, num_envs: int) -> None:
    run = trained(configure, algo, "algo.gamma=0.6", f"num_envs={num_envs}", length=2)
    assert values(run, 0, 1) == pytest.approx([0.6, 1.0], abs=0.07 * TOLERANCE.get(algo, 1))


@pytest.mark.parametrize(("algo", "num_envs"), SINGLE_AND_SEVERAL)
def test_values_reach_through_a_time_limit(configure: Any, algo: str, num_envs: int) -> None:
    """Terminated, the same step would be worth 1; cut, it is worth 1 / (1 - γ) = 2."""
    run = trained(configure, algo, "algo.gamma=0.5", f"num_envs={num_envs}", cut=True)
    assert values(run, 0) == pytest.approx([2.0], abs=0.1 * TOLERANCE.get(algo, 1))


# With batch norm an actor of one state finds the action roughly.
@pytest.mark.parametrize("algo", [case(algo) for algo in AGENTS if algo not in ("xqc_small", "flashsac")])
def test_the_right_action_is_found(configure: Any, algo: str) -> None:
    run = trained(configure, algo, "total_steps=600", by_action=True)
    action = run.agent.act(torch.zeros(1, dtype=torch.int64) if algo == "q_learning" else torch.zeros(1, 1))[0]
    wanted = 1 if run.envs.spec.num_actions else [0.5, -0.5]
    assert action.tolist() == pytest.approx(wanted, abs=0.2)
    assert values(run, 0) == pytest.approx([1.0], abs=0.15)


@pytest.mark.parametrize(("algo", "keys"), [("discrete_sac", ("algo.alpha=0.5",)),
                                            ("munchausen", ("algo.munchausen=0", "algo.temperature=0.5"))])  # fmt: skip
def test_a_soft_policy_is_worth_what_it_does_and_how_freely(configure: Any, algo: str, keys: tuple[str, ...]) -> None:
    """Rewards are 0, 1, 0 twice. In the last state V = α log Σ exp(r/α) = 1.12, and π(1) = exp(2) / (exp(2) + 2)."""
    run = trained(configure, algo, "algo.gamma=0.8", "total_steps=1500", *keys, by_action=True, length=2)
    agent: Any = run.agent
    obs = torch.tensor([[0.0], [1.0]])
    net = agent.critics if algo == "discrete_sac" else agent.q
    q = agent.value.mean(net(obs)).reshape(-1, 2, 3).mean(0)
    last = 0.5 * math.log(math.exp(2) + 2)
    assert q[1].tolist() == pytest.approx([0, 1, 0], abs=0.1)
    assert q[0].tolist() == pytest.approx([0.8 * last, 1 + 0.8 * last, 0.8 * last], abs=0.15)
    if algo == "discrete_sac":
        assert agent.actor(obs).exp()[:, 1].tolist() == pytest.approx([math.exp(2) / (math.exp(2) + 2)] * 2, abs=0.05)
