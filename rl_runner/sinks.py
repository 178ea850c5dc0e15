"""Sinks: where logged rows go besides metrics.jsonl, such as TensorBoard."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

EVENTS = "events.out.tfevents.*"
CHARTS = {  # of TensorBoard's custom scalars, which shows one twice if two runs of a page fill it differently
    "TD loss": ["losses/td_loss"],
    "Q and its target": ["values/q_mean", "values/target_mean", "values/q_min", "values/q_max"],
    "actor and temperature loss": ["losses/actor_loss", "losses/alpha_loss"],
    "temperature and entropy": ["policy/alpha", "policy/entropy"],
    "exploration": ["charts/epsilon", "policy/noise_scale"],
    "gradient norms": ["grads/q_norm", "grads/critic_norm", "grads/actor_norm"],
    "return": ["charts/episodic_return", "eval/return_mean"],
    "Q bias": ["eval/q_bias"],
}
EVALUATION = ("charts/episodic_return", "eval/return_mean", "eval/q_bias")  # logged by every algorithm, but later

Row = Mapping[str, float]


class Sink(Protocol):
    """Where logged rows go besides metrics.jsonl. What goes wrong here never stops a run: it pauses the sink.

    A sink that paused is made anew, as for a new run, and gets all rows again.
    """

    def __init__(self, *, directory: Path, hparams: Mapping[str, Any], step: int, state: Mapping[str, Any] | None):
        """Start anew, or at `step` go on from the `state` that `sync` returned then, whatever was written since."""

    def write(self, step: int, row: Row) -> None:
        """One logged row by tag; finite values only."""

    def sync(self) -> dict[str, Any]:
        """Bring all rows to where they belong; from what to go on, as JSON holds it. If empty: from all rows, anew."""

    def close(self) -> None:
        """No row will follow."""


class TensorBoard:
    """Event files of one run, in which each tag has one point per step, however often the run was killed.

    Written here and at once: TensorBoard's own writer has a thread, which loses points to a kill and dies aloud.
    """

    def __init__(self, *, directory: Path, hparams: Mapping[str, Any], step: int, state: Mapping[str, int] | None):
        """`state`: the sizes of the event files in bytes, by name."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from torch.utils.tensorboard.summary import hparams as summaries_of

        self._directory = directory
        self._laid_out = False
        sizes = state or {}
        for path in directory.glob(EVENTS):
            if path.name in sizes:
                os.truncate(path, min(sizes[path.name], path.stat().st_size))
            else:
                path.unlink()
        # TensorBoard reads the files in the order of their names, which begin with a time in seconds.
        second = max([int(time.time()), *(int(name.split(".")[3]) + 1 for name in sizes)])
        name = EVENTS.replace("*", f"{second:010d}.{socket.gethostname()}.{os.getpid()}.0")
        self._file = (directory / name).open("ab", buffering=0)
        self._add(file_version="brain.Event:2")
        # A server that has read what was cut off forgets it by this.
        self._add(step=step + 1 if sizes else 0, session_log=SessionLog(status=SessionLog.START))
        if not sizes:
            for summary in summaries_of(dict(hparams), {"eval/return_mean": 0.0}):
                self._add(summary=summary)

    def write(self, step: int, row: Row) -> None:
        from torch.utils.tensorboard.summary import Summary

        if not self._laid_out and any(tag.startswith("losses/") for tag in row):
            self._laid_out = True  # a resumed run does it again: the first one counts
            self._lay_out(row)
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.items()]
        self._add(step=step, summary=Summary(value=points))

    def sync(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self._directory.glob(EVENTS)}

    def close(self) -> None:
        self._file.close()

    def _lay_out(self, row: Row) -> None:
        """Choose the charts by what the algorithm logs: its first row with a loss has all but the evaluation."""
        from torch.utils.tensorboard.summary import custom_scalars

        known = {*row, *EVALUATION}
        charts = {title: [f"^{tag}$" for tag in tags] for title, tags in CHARTS.items() if known & set(tags)}
        layout = {title: ["Multiline", tags] for title, tags in charts.items()}
        self._add(summary=custom_scalars({"rl_runner": layout}))

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(self._file).write(Event(wall_time=time.time(), **fields).SerializeToString())
