"""The logged rows as TensorBoard's curves: a convenience, so nothing that goes wrong here stops a run."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

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


class Curves:
    """Event files of one run, in which each tag has one point per step, however often the run was killed.

    Written here and at once: TensorBoard's own writer has a thread, which loses points to a kill and dies aloud.
    """

    def __init__(self, directory: Path, hparams: Mapping[str, Any], step: int, sizes: Mapping[str, int] | None):
        """Start anew, or continue what the event files held when their `sizes` were recorded, at `step`."""
        self._directory, self._hparams = directory, hparams
        self._file: Any = None
        self._laid_out = False
        self._broken = sizes == {}  # they were when the sizes were recorded
        self._attempt(lambda: self._open(step, sizes or {}))

    def write(self, step: int, row: Row) -> None:
        """One point for each tag of a row."""
        self._attempt(lambda: self._add_row(step, row))

    def sync(self, rows: Callable[[], Iterable[tuple[int, Row]]]) -> dict[str, int]:
        """The sizes of the event files in bytes; if they broke, they are written anew from all rows."""
        if self._broken:
            self._broken = False
            self._attempt(lambda: self._rewrite(rows()))
        return {} if self._broken else {path.name: path.stat().st_size for path in self._directory.glob(EVENTS)}

    def close(self) -> None:
        self._attempt(lambda: self._file.close())

    def _open(self, step: int, sizes: Mapping[str, int]) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from torch.utils.tensorboard.summary import hparams

        for path in self._directory.glob(EVENTS):
            if path.name in sizes:
                os.truncate(path, min(sizes[path.name], path.stat().st_size))
            else:
                path.unlink()
        # TensorBoard reads the files in the order of their names, which begin with a time in seconds.
        second = max([int(time.time()), *(int(name.split(".")[3]) + 1 for name in sizes)])
        name = EVENTS.replace("*", f"{second:010d}.{socket.gethostname()}.{os.getpid()}.0")
        self._file = (self._directory / name).open("ab", buffering=0)
        self._add(file_version="brain.Event:2")
        # A server that has read what was cut off forgets it by this.
        self._add(step=step + 1 if sizes else 0, session_log=SessionLog(status=SessionLog.START))
        if sizes:
            return
        self._laid_out = False
        for summary in hparams(dict(self._hparams), {"eval/return_mean": 0.0}):
            self._add(summary=summary)

    def _rewrite(self, rows: Iterable[tuple[int, Row]]) -> None:
        self._open(0, {})
        for step, row in rows:
            self._add_row(step, row)

    def _add_row(self, step: int, row: Row) -> None:
        from torch.utils.tensorboard.summary import Summary

        if not self._laid_out and any(tag.startswith("losses/") for tag in row):
            self._laid_out = True  # a resumed run does it again: the first one counts
            self._lay_out(row)
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in row.items()]
        self._add(step=step, summary=Summary(value=points))

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

    def _attempt(self, call: Callable[[], Any]) -> None:
        """Say an error once, and leave the curves alone until the next `sync`."""
        if self._broken:
            return
        try:
            call()
        except Exception as error:
            self._broken = True
            print(f"TensorBoard's curves pause ({error}); metrics.jsonl goes on", file=sys.stderr)
