"""Metrics on their way out: averages kept as tensors, then one row per step for metrics.jsonl and TensorBoard."""

import json
import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from rl_runner import persistence
from rl_runner.beside import Beside
from rl_runner.envs.process import one_line
from rl_runner.errors import RunFailed
from rl_runner.persistence import METRICS
from rl_runner.sinks import Sink

Rows = Iterable[tuple[int, Mapping[str, float]]]


class Averages:
    """Means of the updates' metrics since the last row, kept where they were computed until a row asks for them."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, tags: tuple[str, ...], values: Tensor) -> None:
        """Count one update's metrics, `values` `[len(tags)]`; updates may differ in their tags."""
        if tags in self._sums:
            self._sums[tags] += values
            self._counts[tags] += 1
        else:
            self._sums[tags] = values.clone()
            self._counts[tags] = 1

    def check(self) -> None:
        """Raise RunFailed with the culprit's name if a metric is not finite."""
        for tags, values in self._sums.items():
            for tag, value in zip(tags, values.tolist(), strict=True):
                if not math.isfinite(value):
                    raise RunFailed(f"{tag} became {value}: try a smaller optimizer.lr or set algo.max_grad_norm")

    def read(self) -> dict[str, float]:
        """The means by tag, after which counting starts anew; RunFailed if one is not finite."""
        self.check()
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for tags, values in self._sums.items():
            for tag, value in zip(tags, values.tolist(), strict=True):
                sums[tag] = sums.get(tag, 0.0) + value
                counts[tag] = counts.get(tag, 0) + self._counts[tags]
        self._sums.clear()
        self._counts.clear()
        return {tag: sums[tag] / counts[tag] for tag in sums}

    def state_dict(self) -> dict[str, Any]:
        return {"tags": [list(tags) for tags in self._sums], "sums": list(self._sums.values()),
                "counts": list(self._counts.values())}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        keys = [tuple(tags) for tags in state["tags"]]
        self._sums = dict(zip(keys, state["sums"], strict=True))
        self._counts = dict(zip(keys, state["counts"], strict=True))


def finite(row: Mapping[str, float]) -> dict[str, float]:
    """What of a row can be written."""
    return {tag: value for tag, value in row.items() if math.isfinite(value)}


class Logger:
    """Writes rows `{"step": int, tag: float, ...}` to metrics.jsonl, and hands them to the sinks.

    A row whose evaluation is not there yet waits, and those behind it; so does one that a full disk does not take.
    `show`: is told of each row, when it is written.
    """

    def __init__(
        self,
        directory: Path,
        sinks: Mapping[str, Callable[..., Sink]],
        step: int = 0,
        written: Mapping[str, Any] | None = None,
        show: Callable[[int, dict[str, float]], None] = lambda step, row: None,
    ):
        """Start the files of a run, or continue them where `sync`, at `step`, said that it had `written` them."""
        self._path = directory / METRICS
        self._file = self._path.open("ab", buffering=0)
        self._show = show
        self._due: deque[tuple[int, Mapping[str, float], Beside | None]] = deque()
        self._waiting = b""
        length = written["metrics"] if written else 0
        whole_lines = self._path.read_bytes()[:length].rfind(b"\n") + 1
        if whole_lines < length:
            print(f"{self._path} has lost its end: rows before step {step:,} are missing", file=sys.stderr)
        self._file.truncate(whole_lines)
        self._sinks = {name: Guarded(name, make) for name, make in sinks.items()}
        states = written.get("sinks", {"tensorboard": written.get("curves")}) if written else {}
        for name, sink in self._sinks.items():
            sink.begin(step, states.get(name))

    def write(self, step: int, row: Mapping[str, float], evaluation: Beside | None = None) -> None:
        """One row, which an evaluation may complete; values that are not finite are left out."""
        self._due.append((step, row, evaluation))
        self.catch_up()

    def catch_up(self, wait: bool = False) -> None:
        """Write the rows that are due as far as they are complete; if asked, all of them."""
        while self._due and (wait or self._due[0][2] is None or self._due[0][2].ready):
            step, row, evaluation = self._due.popleft()
            row = finite({**row, **evaluation.result} if evaluation else row)
            self._waiting += json.dumps({"step": step, **row}).encode() + b"\n"
            with suppress(OSError):  # sync tries again, and no checkpoint goes without it
                self._drain()
            for sink in self._sinks.values():
                sink.write(step, row)
            self._show(step, row)

    def sync(self) -> dict[str, Any]:
        """Bring all rows to the disk, or raise OSError; how far the files and sinks are, for continuing them."""
        self.catch_up(wait=True)
        with persistence.named(self._path):
            self._drain()
            os.fsync(self._file.fileno())
        states = {name: sink.sync(self._rows) for name, sink in self._sinks.items()}
        return {"metrics": self._path.stat().st_size, "sinks": states}

    def close(self) -> None:
        """Bring all rows to the disk, or raise OSError, for good."""
        self.sync()
        self._file.close()
        for sink in self._sinks.values():
            sink.close()

    def _drain(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def _rows(self) -> Rows:
        for line in self._path.read_bytes().splitlines():
            row = json.loads(line)
            yield row.pop("step"), row


class Guarded:
    """A sink whose errors are said once; then it is left alone until the next `sync`, which makes it anew."""

    def __init__(self, name: str, make: Callable[..., Sink]):
        """`make`: takes `step` and `state`."""
        self._name, self._make = name, make
        self._sink: Any = None

    def begin(self, step: int, state: Mapping[str, Any] | None) -> None:
        """Start, or go on from a state; without one the next `sync` makes the sink, from all rows."""
        if state or not step:
            self._attempt(lambda: self._open(step, state))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        if self._sink is not None:
            self._attempt(lambda: self._sink.write(step, row))

    def sync(self, rows: Callable[[], Rows]) -> dict[str, Any]:
        """What the sink needs to go on; empty if it pauses."""
        if self._sink is None:
            self._attempt(lambda: self._open(0, None, rows()))
        state: dict[str, Any] = {}
        if self._sink is not None:  # by way of JSON, so that what a checkpoint cannot hold stops no run
            self._attempt(lambda: state.update(json.loads(json.dumps(self._sink.sync()))))
        return state

    def close(self) -> None:
        if self._sink is not None:
            self._attempt(lambda: self._sink.close())

    def _open(self, step: int, state: Mapping[str, Any] | None, rows: Rows = ()) -> None:
        self._sink = self._make(step=step, state=state)
        for each, row in rows:
            self._sink.write(each, row)

    def _attempt(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._sink = None
            print(f"{self._name} pauses ({one_line(error)}); metrics.jsonl goes on", file=sys.stderr)
