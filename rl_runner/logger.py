"""Metrics on their way out: averages kept as tensors, then one row per step for metrics.jsonl and TensorBoard."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from rl_runner import persistence
from rl_runner.curves import Curves
from rl_runner.errors import RunFailed
from rl_runner.persistence import METRICS


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
    """Writes rows `{"step": int, tag: float, ...}` to metrics.jsonl and the same points for TensorBoard.

    A row that a full disk does not take waits in memory until there is room.
    """

    def __init__(
        self, directory: Path, hparams: Mapping[str, Any], step: int = 0, written: Mapping[str, Any] | None = None
    ):
        """Start the files of a run, or continue them where `sync`, at `step`, said that it had `written` them."""
        self._path = directory / METRICS
        self._file = self._path.open("ab", buffering=0)
        self._waiting = b""
        length = written["metrics"] if written else 0
        whole_lines = self._path.read_bytes()[:length].rfind(b"\n") + 1
        if whole_lines < length:
            print(f"{self._path} has lost its end: rows before step {step:,} are missing", file=sys.stderr)
        self._file.truncate(whole_lines)
        self._curves = Curves(directory, hparams, step, written["curves"] if written else None)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """One row; values that are not finite are left out."""
        row = finite(row)
        self._waiting += json.dumps({"step": step, **row}).encode() + b"\n"
        with suppress(OSError):  # sync tries again, and no checkpoint goes without it
            self._drain()
        self._curves.write(step, row)

    def sync(self) -> dict[str, Any]:
        """Bring all rows to the disk, or raise OSError; the lengths of the files, for continuing them."""
        with persistence.named(self._path):
            self._drain()
            os.fsync(self._file.fileno())
        return {"metrics": self._path.stat().st_size, "curves": self._curves.sync(self._rows)}

    def close(self) -> None:
        """Bring all rows to the disk, or raise OSError, for good."""
        self.sync()
        self._file.close()
        self._curves.close()

    def _drain(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def _rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        for line in self._path.read_bytes().splitlines():
            row = json.loads(line)
            yield row.pop("step"), row
