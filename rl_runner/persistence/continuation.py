"""Whether and how a run may go on from what its directory holds."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_runner.config.schema import DEFAULTS_ADDED_LATER, Config, EnvConfig, renewed, written_values
from rl_runner.envs.state import probe
from rl_runner.errors import UserError
from rl_runner.machine import resolve_device
from rl_runner.persistence import snapshot
from rl_runner.persistence.checkpoint import Saved
from rl_runner.replay.rowlog import RowLog
from rl_runner.rundir import RESULT, STATUS, flatten, read_json
from rl_runner.train import Run, schedules

# What changes nothing that a run has learned; everything else must stay as it was.
FREE = {
    "total_steps", "eval_every", "eval_episodes", "final_eval_episodes", "log_every", "checkpoint_every", "plugins",
    "dry_run", "fresh", "chosen",
}  # fmt: skip


def rung(env: EnvConfig, seed: int) -> tuple[bool, str]:
    """Whether an environment must be made anew for every episode to be repeatable, and how exactly runs in it go on."""
    if probe(env, seed) == "exact":
        return False, "exact continuation by replaying the running episode"
    if probe(env, seed, rebuild=True) == "exact":
        return True, "exact continuation by replay, in a new environment for every episode (reset() leaves traces)"
    return False, "not deterministic: a run resumes at episode boundaries only, not exactly"


def check_config(config: Config, saved: Saved, directory: Path) -> None:
    """UserError with the differences if the run in `directory` was made by another config."""
    there, here = DEFAULTS_ADDED_LATER | flatten(renewed(saved.origin["config"])), flatten(written_values(config))
    differences = [
        f"{key} is {there.get(key, 'not set')} there, {here.get(key, 'not set')} here"
        for key in sorted(there.keys() | here.keys())
        if key.split(".")[0] not in FREE and there.get(key) != here.get(key)
    ]
    if differences:
        raise UserError(
            f"{directory} holds a run that has learned with other values ({'; '.join(differences)}): "
            "keep them, or start a new run"
        )
    if (device := saved.origin["machine"]["device"]) != resolve_device(config.device).type:
        raise UserError(f"{directory} holds a run that learns on {device}: continue it where there is one")
    if config.total_steps < min(saved.step, saved.origin["config"]["total_steps"]):
        raise UserError(f"total_steps={config.total_steps}: {directory} has already made {saved.step:,} steps")


def finished(config: Config, saved: Saved | None, directory: Path) -> dict[str, Any] | None:
    """The result if the directory's run is over and nothing more is asked of it."""
    if read_json(directory / STATUS).get("state") != "finished":
        return None
    if saved is None:
        raise UserError(f"{directory} holds a finished run without its checkpoint: choose a new hydra.run.dir")
    return read_json(directory / RESULT) if saved.step >= config.total_steps else None


def restore(parts: Run, log: RowLog | None, saved: Saved, origin: Mapping[str, Any]) -> None:
    """Put a checkpoint back into the parts, and say what is not, or not exactly, as it was."""
    snapshot.put_back(parts, saved.state)
    if log and saved.replay:
        log.restore(saved.replay, saved.state["newest_rows"])
    lost = snapshot.put_back_envs(parts, saved.state)
    print(f"continues at step {saved.step:,} of {parts.config.total_steps:,}")
    for line in _stretched(parts, saved):
        print(line)
    for line in [*_changes(saved.origin, origin), *lost]:
        print(f"not exact: {line.removeprefix('not exact: ')}", file=sys.stderr)


def extends(config: Config, saved: Saved) -> bool:
    """Whether the run had come to its end and shall now go on."""
    return saved.origin["config"]["total_steps"] <= saved.step < config.total_steps


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is different from the machine that wrote the checkpoint."""
    pairs = [("accelerate", before["accelerate"], now["accelerate"])]
    pairs += [(key, before["machine"].get(key), value) for key, value in now["machine"].items()]
    return [f"{key} was {old}, is {new}" for key, old, new in pairs if old != new]


def _stretched(parts: Run, saved: Saved) -> list[str]:
    """What another `total_steps` does to the schedules."""
    total, new_total = saved.origin["config"]["total_steps"], parts.config.total_steps
    if total == new_total:
        return []
    before = saved.state["schedules"]
    return [f"total_steps {total:,} becomes {new_total:,}: every schedule of the run is stretched to that"] + [
        f"{tag} at step {saved.step:,} was {before[tag]:.4g}, is {value:.4g}"
        for tag, value in schedules(parts).items()
        if tag in before and before[tag] != value
    ]
