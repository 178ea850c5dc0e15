"""What the README shows of bringing one's own parts, as one file that a newcomer would copy."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README.partition("## Bring your own")[2].partition("\n## ")[0]
SHORT = "total_steps=300 learning_starts=100 log_every=50 eval_every=0 final_eval_episodes=20 seed=1"
MINE = "--config-dir my_configs plugins=[mine] env=Blob-v0"
OWN = {
    "network": "algo=dqn network=conv algo.epsilon_schedule=multiplicative",  # of no total_steps
    "agent and replay": "algo=bandit replay=recent",
    "optimizer and logger": "algo=bandit optimizer=sign optimizer.lr=0.01 loggers.mine={_target_:mine.Returns}",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the README's file, and what its shell commands make."""
    blocks = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    (tmp_path / "mine.py").write_text("\n\n".join(blocks))
    makes = re.findall(r"^(?:mkdir|echo|printf) .*$", SECTION, re.MULTILINE)
    subprocess.run("\n".join(makes), shell=True, cwd=tmp_path, check=True)
    return tmp_path


def call(place: Path, words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "rl_runner", *shlex.split(words)]
    ended = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    return ended.stdout


def test_the_commands_run(place: Path) -> None:
    commands = re.findall(r"^python -m rl_runner (.*)$", SECTION, re.MULTILINE)
    assert len(commands) == 2
    for words in commands:
        call(place, f"{words} final_eval_episodes=5 eval_every=0")


@pytest.mark.parametrize("part", OWN)
def test_each_part_runs_and_resumes_to_the_same_bits(part: str, place: Path) -> None:
    words = f"{MINE} {OWN[part]} {SHORT}"
    call(place, f"{words} hydra.run.dir=whole")
    call(place, f"{words} hydra.run.dir=parts total_steps=200")
    call(place, "resume parts total_steps=300 plugins=[mine]")
    whole, parts = (json.loads((place / name / "result.json").read_text()) for name in ("whole", "parts"))
    assert parts["params_sha256"] == whole["params_sha256"]
    assert parts["episode_returns"] == whole["episode_returns"]
    assert parts["updates"] == 200
    if part == "optimizer and logger":
        assert (place / "whole/returns.csv").read_text().count("\n") == 6


@pytest.mark.parametrize("part", ["network", "agent and replay"])
def test_what_is_traceable_is_compiled(part: str, place: Path) -> None:
    words = f"{MINE} {OWN[part]} {SHORT} total_steps=110"  # 10 updates: rounding has had no time to grow
    said = call(place, f"{words} accelerate=compile hydra.run.dir=compiled")
    assert "compile (as configured)" in said
    call(place, f"{words} accelerate=eager hydra.run.dir=eager")
    fast, slow = (torch.load(newest(place / name), weights_only=True)["agent"]["q"] for name in ("compiled", "eager"))
    for name, tensor in slow.items():
        assert torch.allclose(fast[name], tensor, rtol=1e-3, atol=1e-3), name


def test_running_statistics_are_saved_evaluated_and_exported(place: Path) -> None:
    call(place, f"{MINE} {OWN['network']} {SHORT} hydra.run.dir=run")
    state = torch.load(newest(place / "run"), weights_only=True)["agent"]
    assert state["q"]["net.norm.running_mean"].abs().sum() > 0
    assert not torch.equal(state["q"]["net.norm.running_var"], torch.ones(4))
    returns = json.loads((place / "run/result.json").read_text())["eval/return_mean"]
    said = call(place, "eval run plugins=[mine]")
    assert f"eval/return_mean {returns:.4g}" in said
    assert "acts like the agent" in call(place, "export run plugins=[mine]")


def newest(run: Path) -> Path:
    return max((run / "checkpoint").glob("*.pt"))
