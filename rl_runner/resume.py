"""`rl-runner resume DIR [key=value ...]`; what a run remembers, and whether and how it goes on from that."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rl_runner.commands import parse
from rl_runner.config.schema import DEFAULTS_ADDED_LATER, Config, load_config, renewed, written_values
from rl_runner.errors import RunFailed, UserError
from rl_runner.machine import available, resolve_device
from rl_runner.persistence import CONFIG, RESULT, STATUS, SWEEP, flatten, read_json
from rl_runner.persistence.checkpoint import Saved, load_state, state_of, tensors
from rl_runner.replay.rowlog import RowLog
from rl_runner.train import Run, schedules

# What changes nothing that a run has learned; everything else must stay as it was.
MAY_CHANGE_ON_RESUME = {
    "total_steps", "eval_every", "eval_episodes", "final_eval_episodes", "eval_epsilon", "eval_max_steps",
    "eval_process", "vectorization", "log_every", "checkpoint_every", "plugins", "dry_run", "fresh", "chosen",
    "loggers",
}  # fmt: skip
DECIDED = ("accelerate", "precision")  # once for the whole run


def main(argv: list[str]) -> None:
    """Continue a run or all of a sweep; overrides may change what was not learned from, such as total_steps."""
    arguments = parse("resume", argv)
    if (arguments.directory / SWEEP).exists():
        from rl_runner.sweep import resume

        resume(arguments.directory, arguments.overrides)
    else:
        from rl_runner.run import run

        run(load_config(arguments.directory / CONFIG, arguments.overrides), arguments.directory)


def check_config(config: Config, saved: Saved, directory: Path) -> None:
    """UserError with the differences if the run in `directory` was made by another config."""
    was = renewed(saved.origin["config"], config.plugins)
    free, device = MAY_CHANGE_ON_RESUME, resolve_device(config.device)
    precision = saved.origin.get("precision", config.precision)
    if precision != available(precision, device):
        if config.precision != "highest":
            raise UserError(
                f"{directory} holds a run that learns in {precision}, for which this machine has no instructions: "
                "continue it on another, or inexactly with precision=highest"
            )
        free = free | {"precision"}
    there, here = (flatten(DEFAULTS_ADDED_LATER | values) for values in (was, written_values(config)))
    differences = [
        f"{key} is {there.get(key, 'not set')} there, {here.get(key, 'not set')} here"
        for key in sorted(there.keys() | here.keys())
        if key.split(".")[0] not in free and there.get(key) != here.get(key)
    ]
    if differences:
        raise UserError(
            f"{directory} holds a run that has learned with other values ({'; '.join(differences)}): "
            "keep them, or start a new run"
        )
    if (was_on := saved.origin["machine"]["device"]) != device.type:
        raise UserError(f"{directory} holds a run that learns on {was_on}: continue it where there is one")
    if config.total_steps < min(saved.step, saved.origin["config"]["total_steps"]):
        raise UserError(f"total_steps={config.total_steps}: {directory} has already made {saved.step:,} steps")


def finished(config: Config, saved: Saved | None, directory: Path) -> dict[str, Any] | None:
    """The result if the directory's run is over and nothing more is asked of it."""
    if read_json(directory / STATUS).get("state") != "finished":
        return None
    if saved is None:
        raise UserError(f"{directory} holds a finished run without its checkpoint: choose a new hydra.run.dir")
    return read_json(directory / RESULT) if saved.step >= config.total_steps else None


def extends(config: Config, saved: Saved) -> bool:
    """Whether the run had come to its end and shall now go on."""
    return saved.origin["config"]["total_steps"] <= saved.step < config.total_steps


def check_finite(run: Run) -> None:
    """RunFailed with the culprit's name if a metric or a number of the agent's state is not finite: do not save it."""
    run.averages.check()
    for path, tensor in tensors(state_of(run.agent)):
        if not torch.isfinite(tensor).all():
            name = path.strip("/").replace("/", ".")
            raise RunFailed(f"{name} is not finite: try a smaller optimizer.lr or set algo.max_grad_norm")


def snapshot_of(run: Run) -> dict[str, Any]:
    """The state of every part but the replay's rows, as plain containers, tensors and numbers; not copies."""
    return state_of(run) | {
        "training_seconds": run.stopwatch.seconds,
        "last_row": run.stopwatch.row,
        "finished_episodes": run.finished_episodes,
        "schedules": schedules(run),
        "envs": run.envs.state_dict(),
    }


def restore(run: Run, log: RowLog | None, saved: Saved, origin: Mapping[str, Any]) -> None:
    """Put a checkpoint back into the parts of a run, and say what is not, or not exactly, as it was.

    UserError if the checkpoint is that of another kind of run. No transition spans an episode that is lost.
    """
    state = saved.state
    try:
        load_state(run, state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = str(error).partition("\n")[0]
        raise UserError(f"the checkpoint was written by other code and does not fit: {what}") from error
    seconds = state["training_seconds"]
    run.stopwatch.set(seconds, tuple(state.get("last_row", (seconds, run.step, run.updates))))
    run.finished_episodes = [(total, length) for total, length in state["finished_episodes"]]
    if log and saved.replay:
        log.restore(saved.replay, state["newest_rows"])
    lost = run.envs.load_state_dict(state["envs"])
    if lost and hasattr(run.replay, "cut"):
        run.replay.cut()

    total, total_before = run.config.total_steps, saved.origin["config"]["total_steps"]
    print(f"continues at step {saved.step:,} of {total:,}")
    if total != total_before:
        print(f"total_steps {total_before:,} becomes {total:,}: every schedule of the run is stretched to that")
        for tag, value in schedules(run).items():
            if (before := state["schedules"].get(tag, value)) != value:
                print(f"{tag} at step {saved.step:,} was {before:.4g}, is {value:.4g}")
    older = {"precision": run.config.precision} | saved.origin  # from before it was decided
    here, there = (made["machine"] | {key: made[key] for key in DECIDED} for made in (origin, older))
    changes = [f"{key} was {there.get(key)}, is {value}" for key, value in here.items() if there.get(key) != value]
    for line in [*changes, *lost]:
        print(f"not exact: {line.removeprefix('not exact: ')}", file=sys.stderr)
