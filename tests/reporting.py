"""Run directories as training leaves them, for the tests of the report."""

import json
from pathlib import Path

import numpy as np
import yaml

from rl_runner.report import as_text, write
from rl_runner.report.aggregate import Reference
from rl_runner.report.findings import Findings

TAG = "eval/return_mean"


def write_report(directories: list[Path], out: Path, title: str = "", reference: Reference | None = None) -> Path:
    """Write a report; its page."""
    return write(Findings(directories, TAG, reference), out, title)


def summary(directories: list[Path], tag: str = TAG) -> str:
    """What a report says in the terminal."""
    return as_text(Findings(directories, tag))


def write_run(
    directory: Path,
    algo: str = "dqn",
    env: str = "CartPole-v1",
    seed: int = 0,
    score: float | None = 100.0,
    status: str = "finished",
    error: str | None = None,
    points: int = 5,
    settings: dict | None = None,
    command: list[str] | None = None,
) -> Path:
    """A run directory as training leaves it; a run without a score has no result.json."""
    directory.mkdir(parents=True)
    config = {
        "seed": seed, "total_steps": 1000, "eval_every": 10 * (seed + 1),
        "algo": {"_target_": f"rl_runner.algos.{algo}.{algo.upper()}", "_partial_": True, "gamma": 0.99},
        "optimizer": {"_target_": "rl_runner.optim.adam", "lr": 1e-3}, "network": {"hidden": [64, 64]},
        "env": {"id": env, "kwargs": {}}, "chosen": {"algo": algo, "env": env},
    }  # fmt: skip
    for key, value in (settings or {}).items():
        *path, last = key.split(".")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    head = f"# rl-runner {' '.join(command)}\n" if command else ""
    (directory / "config.yaml").write_text(head + yaml.safe_dump(config))
    (directory / "status.json").write_text(json.dumps({"state": status, "error": error}))
    if score is not None:
        (directory / "result.json").write_text(json.dumps({TAG: score, "sps": 1000.0, "seed": seed, "updates": 900}))
    steps = np.linspace(1000 / points, 1000, points).astype(int)
    height = 0.0 if score is None else score
    rows = [{"step": int(s), TAG: height * s / 1000, "losses/td_loss": 1 / s, "eval/q_bias": s / 100} for s in steps]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def write_group(root: Path, scores: list[float], algo: str = "dqn", env: str = "CartPole-v1", **kwargs) -> None:
    for seed, score in enumerate(scores):
        write_run(root / f"{env}_{algo}_{seed}_{len(list(root.glob('*')))}", algo, env, seed, score, **kwargs)
