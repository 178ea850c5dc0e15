"""The loop: how often it learns, logs and evaluates, all in environment steps, and the same every time."""

import itertools
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats

from rl_runner import accelerate, header
from rl_runner.errors import RunFailed
from rl_runner.logger import Averages
from rl_runner.optim import Targets
from rl_runner.run import build, params_sha256
from rl_runner.train import Run, crossed, train, training_row, uniform_policy, updates_due

WALL_CLOCK = {"charts/SPS", "charts/updates_per_second"}
SMALL = ("network.hidden=[8]", "algo.batch_size=8", "algo.gamma=0.9", "replay.capacity=200", "total_steps=60",
         "learning_starts=10", "log_every=10", "eval_every=20", "eval_episodes=2", "device=cpu")  # fmt: skip
TABULAR = ("total_steps=60", "log_every=10", "eval_every=20", "eval_episodes=2", "device=cpu")
FITTING = {
    "q_learning": "FrozenLake-v1",
    "dqn": "CartPole-v1",
    "ddpg": "Pendulum-v1",
    "td3": "Pendulum-v1",
    "sac": "Pendulum-v1",
}


class Short(gym.Env):
    """Episodes of three random observations."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: int) -> Any:
        self.time += 1
        return self._observe(), float(action), self.time == 3, False, {}

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


@pytest.fixture(autouse=True)
def short_episodes() -> Iterator[None]:
    gym.register("Short-v0", Short)
    yield
    del gym.registry["Short-v0"]


def start(configure: Any, algo: str, *words: str) -> Run:
    common = TABULAR if algo == "q_learning" else SMALL
    return build(configure(f"algo={algo}", f"env={FITTING[algo]}", "tuned=none", *common, *words), None)


def finish(run: Run, update: Callable[[int], None] | None = None) -> list[dict[str, float]]:
    """Train to the end; the rows without what the clock decides."""
    rows: list[dict[str, float]] = []

    def write(step: int, row: dict[str, float], evaluation: None = None) -> None:
        rows.append({"step": step} | {tag: value for tag, value in row.items() if tag not in WALL_CLOCK})

    eager = accelerate.build_update(run.agent, run.replay, run.averages, "eager")
    train(run, update or eager, write, lambda: None)
    write(run.step, training_row(run))  # with the final evaluation, where there is one
    return rows


# How many updates


@pytest.mark.parametrize(("update_every", "updates", "learning_starts", "batch_size"), [
    (1, 1, 0, 1), (1, 1, 10, 4), (4, 2, 10, 4), (3, 5, 0, 16), (256, 128, 1000, 64), (7, 1, 5, 32),
])  # fmt: skip
def test_updates_due_is_the_sum_over_single_steps(
    update_every: int, updates: int, learning_starts: int, batch_size: int
) -> None:
    config: Any = SimpleNamespace(update_every=update_every, updates=updates, learning_starts=learning_starts)
    total = 2000
    enough = max(learning_starts, batch_size - 1)  # steps after which learning may begin
    literal = [updates * (step % update_every == 0 and step > enough) for step in range(1, total + 1)]
    pick = random.Random(0)
    for stride in (1, 2, 4, 10, None):
        before, due = 0, 0
        while before < total:
            step = min(total, before + (stride or pick.randint(1, 50)))
            here = updates_due(config, batch_size, before, step)
            assert here == sum(literal[before:step])
            before, due = step, due + here
        assert due == sum(literal) == updates_due(config, batch_size, 0, total)


@pytest.mark.parametrize(("every", "before", "step", "crosses"), [
    (10, 0, 9, False), (10, 9, 10, True), (10, 10, 19, False), (10, 8, 12, True), (10, 5, 45, True),
    (1, 3, 4, True), (0, 0, 100, False),
])  # fmt: skip
def test_crossed(every: int, before: int, step: int, crosses: bool) -> None:
    assert crossed(every, before, step) == crosses


@pytest.mark.parametrize("num_envs", [1, 4])
def test_four_environments_learn_as_often_per_step_as_one(configure: Any, num_envs: int) -> None:
    run = start(configure, "dqn", f"num_envs={num_envs}", "update_every=2", "updates=3")
    steps: list[int] = []
    finish(run, steps.append)
    assert run.step == 60
    assert run.updates == len(steps) == 3 * (60 - 10) // 2
    assert all(step % num_envs == 0 for step in steps)
    assert run.replay.size == 60


def test_rows_and_evaluations_come_by_environment_steps(configure: Any) -> None:
    rows = finish(start(configure, "sac", "num_envs=4"))  # at the first multiples of 4 from each 10 and each 20 on
    assert [row["step"] for row in rows] == [12, 20, 32, 40, 52, 60]
    assert [row["step"] for row in rows if "eval/return_mean" in row] == [20, 40]  # the last one is left to the run
    assert [row["step"] for row in rows if "losses/td_loss" in row] == [12, 20, 32, 40, 52, 60]


def test_evaluations_on_the_way_are_of_eval_episodes(configure: Any) -> None:
    run, asked = start(configure, "dqn", "eval_episodes=3", "final_eval_episodes=5"), []
    run.evaluator = lambda agent, episodes: (asked.append(episodes) or {}, [])  # type: ignore[assignment,func-returns-value]
    finish(run)
    assert asked == [3, 3]


def test_episodes_are_averaged_since_the_last_row(configure: Any) -> None:
    rows = finish(start(configure, "dqn", "env=Short-v0", "log_every=12", "total_steps=24", "learning_starts=24"))
    assert [row["charts/episodic_length"] for row in rows if "charts/episodic_length" in row] == [3, 3]
    assert all(0 <= row["charts/episodic_return"] <= 3 for row in rows if row["step"] in (12, 24))


def test_a_tabular_agent_learns_from_every_transition_once(configure: Any) -> None:
    for num_envs in (1, 4):
        agent: Any = (run := start(configure, "q_learning", f"num_envs={num_envs}")).agent
        finish(run)
        assert run.updates == 60
        assert agent.visits.sum() == 60


def test_the_target_network_is_copied_by_environment_steps_of_the_whole_run(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes of 3 steps never reach step 10; two updates at every fourth step; a copy before the first one due."""
    words = ("env=Short-v0", "algo.target_every=10", "update_every=4", "updates=2", "learning_starts=8")
    run = start(configure, "dqn", *words)
    copied: list[int] = []
    monkeypatch.setattr(Targets, "copy", lambda self: copied.append(run.step))
    finish(run)
    assert run.updates == 2 * (60 - 8) // 4
    assert copied == [12, 20, 32, 40, 52, 60]


# Before learning starts


def test_actions_are_uniformly_random_at_first(configure: Any) -> None:
    run = start(configure, "ddpg", "learning_starts=40", "total_steps=40", "num_envs=2", "algo.noise_scale=0")
    fresh: Any = start(configure, "ddpg").agent
    finish(run)
    ring: Any = run.replay
    assert run.updates == 0
    assert stats.kstest(ring.ring.columns["action"][:40].flatten().numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    assert torch.equal(fresh.actor.net.output.weight, run.agent.actor.net.output.weight)  # type: ignore[attr-defined]


def test_random_discrete_actions_are_uniform() -> None:
    spec: Any = SimpleNamespace(num_actions=3, action_dim=None)
    policy = uniform_policy(spec, 2, torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.cat([policy() for _ in range(1000)]), minlength=3)
    assert len(counts) == 3
    assert stats.chisquare(counts).pvalue > 1e-3


# The same every time


@pytest.mark.parametrize("algo", FITTING)
def test_same_seed_same_metrics_another_seed_another(configure: Any, algo: str) -> None:
    rows, again, other = (finish(start(configure, algo, f"seed={seed}")) for seed in (0, 0, 1))
    assert rows == again
    assert rows != other
    assert len(rows) == 6


@pytest.mark.parametrize("algo", ["dqn", "sac"])
def test_evaluations_leave_no_trace_in_training(configure: Any, algo: str) -> None:
    with_them, without = (start(configure, algo, f"eval_every={every}") for every in (20, 0))
    rows, fewer = finish(with_them), finish(without)
    assert params_sha256(with_them.agent) == params_sha256(without.agent)
    assert [{tag: value for tag, value in row.items() if not tag.startswith("eval/")} for row in rows] == fewer


def test_training_draws_nothing_from_the_global_stream(configure: Any) -> None:
    run = start(configure, "td3")
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    finish(run)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # type: ignore[index]


@pytest.mark.parametrize("algo", FITTING)
def test_every_metric_of_the_algorithm_is_logged(configure: Any, algo: str) -> None:
    tags = set(itertools.chain(*finish(start(configure, algo, "total_steps=300"))))
    expected = {"losses/td_loss", "values/q_mean", "values/q_min", "values/q_max", "values/target_mean",
                "eval/return_mean", "eval/return_std", "eval/length_mean", "eval/q_bias", "charts/episodic_return",
                "charts/episodic_length", "step"}  # fmt: skip
    actor_critic = {"losses/actor_loss", "grads/actor_norm", "grads/critic_norm", "eval/q_bias_relative"}
    expected |= {
        "q_learning": {"charts/epsilon", "values/q_error_max", "eval/exact_return"},
        "dqn": {"charts/epsilon", "grads/q_norm", "eval/q_bias_relative"},
        "ddpg": actor_critic | {"policy/noise_scale"},
        "td3": actor_critic | {"policy/noise_scale"},
        "sac": actor_critic | {"policy/entropy", "policy/alpha", "losses/alpha_loss"},
    }[algo]
    assert tags == expected


def test_a_falling_learning_rate_is_logged(configure: Any) -> None:
    rows = finish(start(configure, "dqn", "lr_schedule=linear", "optimizer.lr=0.02", "total_steps=40", "log_every=10"))
    logged = {row["step"]: row["charts/learning_rate"] for row in rows if "charts/learning_rate" in row}
    assert logged == pytest.approx({10: 0.015, 20: 0.01, 30: 0.005, 40: 0.0})


def test_a_table_has_no_learning_rate_that_falls(configure: Any) -> None:
    run = start(configure, "q_learning", "lr_schedule=linear", "total_steps=40", "log_every=10")
    assert "falling" not in header.learning(run, 40)
    assert not [row for row in finish(run) if "charts/learning_rate" in row]


# Averages


def test_averages_are_taken_over_the_updates_that_had_the_tag() -> None:
    averages = Averages()
    averages.add(("a", "b"), torch.tensor([1.0, 10.0]))
    averages.add(("a",), torch.tensor([2.0]))
    averages.add(("a", "b"), torch.tensor([6.0, 30.0]))
    continued = Averages()
    continued.load_state_dict(averages.state_dict())
    assert averages.read() == {"a": 3.0, "b": 20.0}
    assert averages.read() == {}
    assert continued.read() == {"a": 3.0, "b": 20.0}


def test_averages_keep_their_own_copy() -> None:
    averages, values = Averages(), torch.tensor([1.0])
    averages.add(("a",), values)
    values.fill_(5.0)
    assert averages.read() == {"a": 1.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_stops_the_run_by_name(value: float) -> None:
    averages = Averages()
    averages.add(("losses/td_loss", "losses/actor_loss"), torch.tensor([1.0, value]))
    with pytest.raises(RunFailed, match=f"losses/actor_loss became {value}"):
        averages.read()


def test_a_run_that_ends_before_its_first_update_is_warned_of(configure: Any) -> None:
    run = start(configure, "dqn")
    warnings = [
        header.describe(run, updates, "eager", "", "highest", "exact", "").count("\nwarning: nothing")
        for updates in (0, 1)
    ]
    assert warnings == [1, 0]
