"""What a sweep would do: its jobs with their updates, memory and time, before anything is started."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_runner.config.schema import Config
from rl_runner.config.targets import resolve
from rl_runner.config.validate import env_spec
from rl_runner.rundir import CONFIG, RESULT, read_json
from rl_runner.sweep.board import duration
from rl_runner.sweep.jobs import Job
from rl_runner.train import updates_due

# What decides how long an environment step takes.
PACE = ("env", "network", "num_envs", "update_every", "updates", "device", "threads", "accelerate", "precision")
ALGO_PACE = ("_target_", "batch_size")
MOST = 500  # finished runs that are looked at


def print_plan(jobs: Sequence[Job], directory: Path, n_jobs: int) -> None:
    """The table of jobs and what they come to together."""
    results = sorted(Path("outputs").rglob(RESULT), key=lambda path: path.stat().st_mtime)[-MOST:]
    earlier = [(read_json(path), _config(path)) for path in results]
    table = Table("job", "", "steps", "updates", "replay", "time", box=None, pad_edge=False)
    times = [0.0 if job.finished else _seconds(job.config, earlier) for job in jobs]
    for job, seconds in zip(jobs, times, strict=True):
        state = "finished" if job.finished else "continues" if job.status() else "new"
        steps, updates = f"{job.config.total_steps:,}", f"{_updates(job.config):,}"
        table.add_row(Text(job.name), state, steps, updates, f"{_megabytes(job.config):,.1f} MB", _said(seconds))
    console = Console()
    console.print(table)
    at_once = min(n_jobs, len(jobs))
    together = _together(times, at_once)
    lines = without_updates([job.config for job in jobs], "jobs")
    print(*lines, f"{len(jobs)} jobs in {directory}, {at_once} at once; time: {together}", sep="\n")


def without_updates(configs: Sequence[Config], noun: str) -> list[str]:
    """A line for those configs that end before their first update, if there are any."""
    count = sum(_updates(config) == 0 for config in configs)
    cure = "they end before their first update: raise total_steps or lower learning_starts"
    return [f"warning: {count:,} of {len(configs):,} {noun} will learn nothing, {cure}"] if count else []


def _updates(config: Config) -> int:
    return updates_due(config, config.algo.get("batch_size", 1), 0, config.total_steps)


def _megabytes(config: Config) -> float:
    """What the replay will hold when it is full."""
    keys = {key: value for key, value in config.replay.items() if key != "_target_"}
    replay: Any = resolve("replay", config.replay["_target_"], config.plugins)
    if not hasattr(replay, "nbytes") or "capacity" not in keys:
        return 0.0
    spec = env_spec(config.env.model_dump_json())
    return replay.nbytes(spec, config.num_envs, **keys) / 1e6


def _seconds(config: Config, earlier: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> float | None:
    """The time that the latest run at the same pace took per step, times the steps; None if there is none."""
    pace = _pace(config.model_dump(mode="json"))
    paces = [result["wall_seconds"] / result["total_steps"] for result, made in earlier if _pace(made) == pace]
    return paces[-1] * config.total_steps if paces else None


def _together(times: Sequence[float | None], at_once: int) -> str:
    """How long all jobs take, in words: no less than the longest of them."""
    known = [seconds for seconds in times if seconds is not None]
    if len(known) < len(times):
        return "unknown, no similar run has finished under outputs/"
    return duration(max(sum(known) / at_once, *known))


def _pace(config: dict[str, Any]) -> list[Any]:
    algo = config.get("algo") or {}
    return [config.get(key) for key in PACE] + [algo.get(key) for key in ALGO_PACE]


def _config(result: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(result.with_name(CONFIG).read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _said(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)
