"""Every algorithm really learns: the thresholds of a user's first look, several seeds each; `pytest -m slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

SEEDS = range(5)


def results(tmp_path: Path, *overrides: str) -> list[dict]:
    """The result of each seed, through the command line."""
    found = []
    for seed in SEEDS:
        directory = tmp_path / str(seed)
        command = [sys.executable, "-m", "rl_runner", *overrides, f"seed={seed}", f"hydra.run.dir={directory}"]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        found.append(json.loads((directory / "result.json").read_text()))
    return found


def test_q_learning_finds_the_optimal_policy_of_frozen_lake(tmp_path: Path) -> None:
    exact = [run["eval/exact_return"] for run in results(tmp_path, "algo=q_learning", "env=FrozenLake-v1")]
    assert exact == pytest.approx([0.740165] * len(exact), abs=1e-6)


@pytest.mark.parametrize("algo", ["dqn", "ddqn"])
def test_the_dqn_family_balances_the_pole(tmp_path: Path, algo: str) -> None:
    returns = [run["eval/return_mean"] for run in results(tmp_path, f"algo={algo}", "env=CartPole-v1")]
    assert sum(value >= 475 for value in returns) >= 4, returns


@pytest.mark.parametrize("algo", ["ddpg", "td3", "sac"])
def test_the_continuous_algorithms_swing_the_pendulum_up(tmp_path: Path, algo: str) -> None:
    returns = [run["eval/return_mean"] for run in results(tmp_path, f"algo={algo}", "env=Pendulum-v1")]
    assert sum(value >= -170 for value in returns) >= 4, returns  # a seed may still swing up late from some starts


@pytest.mark.parametrize("algo", ["td3", "sac"])
def test_untuned_on_an_environment_without_a_file(tmp_path: Path, algo: str) -> None:
    pytest.importorskip("mujoco")
    runs = results(tmp_path, f"algo={algo}", "env=InvertedPendulum-v5", "total_steps=30_000")
    returns = [run["eval/return_mean"] for run in runs]
    assert sum(value >= 950 for value in returns) >= 4, returns
