"""All that a run has to remember, taken out of its parts and put back into them."""

from typing import Any

import torch

from rl_runner.errors import RunFailed, UserError
from rl_runner.persistence.state import load_state, state_of, tensors
from rl_runner.train import Run, schedules


def check(run: Run) -> None:
    """RunFailed with the culprit's name if a metric or a number of the agent's state is not finite: do not save it."""
    run.averages.check()
    for path, tensor in tensors(state_of(run.agent)):
        if not torch.isfinite(tensor).all():
            name = path.strip("/").replace("/", ".")
            raise RunFailed(f"{name} is not finite: try a smaller optimizer.lr or set algo.max_grad_norm")


def take(run: Run) -> dict[str, Any]:
    """The state of every part but the replay's rows, as plain containers, tensors and numbers; not copies."""
    return {
        "step": run.step,
        "updates": run.updates,
        "training_seconds": run.stopwatch.seconds,
        "last_row": run.stopwatch.row,
        "finished_episodes": run.finished_episodes,
        "schedules": schedules(run),
        "agent": state_of(run.agent),
        "replay": run.replay.state_dict(),
        "envs": run.envs.state_dict(),
        "averages": run.averages.state_dict(),
        "warm_up": run.warm_up.get_state(),
    }


def put_back(run: Run, state: dict[str, Any]) -> None:
    """Restore everything but environments and rows; UserError if the state is that of another kind of run."""
    try:
        load_state(run.agent, state["agent"])
        run.replay.load_state_dict(state["replay"])
        run.averages.load_state_dict(state["averages"])
        run.warm_up.set_state(state["warm_up"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = str(error).partition("\n")[0]
        raise UserError(f"the checkpoint was written by other code and does not fit: {what}") from error
    run.step, run.updates = state["step"], state["updates"]
    seconds = state["training_seconds"]
    run.stopwatch.set(seconds, tuple(state.get("last_row", (seconds, run.step, run.updates))))
    run.finished_episodes = [(total, length) for total, length in state["finished_episodes"]]


def put_back_envs(run: Run, state: dict[str, Any]) -> list[str]:
    """Bring the running episodes back; one line for each that is lost, and then no transition spans the break."""
    losses = run.envs.load_state_dict(state["envs"])
    if losses and hasattr(run.replay, "cut"):
        run.replay.cut()
    return losses
