"""Run directories read as they lie there: finished, cut, failed or still running."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from rl_runner.config.schema import YOUNGER
from rl_runner.errors import UserError
from rl_runner.report.progress import progress
from rl_runner.rundir import CONFIG, METRICS, RESULT, STATUS, command_line_of, flatten, read_json

Array = NDArray[np.float64]


class Curve(NamedTuple):
    """One tag of one run; steps increase."""

    steps: Array
    values: Array


@dataclass(frozen=True)
class Run:
    """What one run directory says; `settings` is config.yaml with dotted keys, `name` its path among the others."""

    name: str
    settings: dict[str, Any]
    status: str
    error: str
    result: dict[str, Any]
    curves: dict[str, Curve]

    @property
    def seed(self) -> int:
        return int(self.settings.get("seed", 0))

    @property
    def algo(self) -> str:
        target = str(self.settings.get("algo._target_", "algorithm"))
        return str(self.settings.get("chosen.algo") or target.rpartition(".")[2].lower())

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def score(self, tag: str) -> float | None:
        """The final evaluation's value of a tag, only if the run came to its end."""
        value = self.result.get(tag) if self.finished else None
        return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


class Collection(NamedTuple):
    """Everything that was found under the given directories."""

    runs: list[Run]
    unreadable: dict[str, str]


def collect(directories: Sequence[Path]) -> Collection:
    """Read every run at or below the directories; a broken run is kept or named, never fatal."""
    paths = sorted({path for directory in directories for path in _run_directories(directory)})
    if not paths:
        places = ", ".join(str(directory) for directory in directories)
        raise UserError(f"no run in {places}: give a run's directory, a sweep's, or a folder that holds some")
    root = os.path.commonpath([path.parent for path in paths])
    runs, unreadable = [], {}
    for path in progress(paths, "Reading runs"):
        name = path.relative_to(root).as_posix()
        try:
            runs.append(read_run(path, name))
        except (OSError, ValueError, yaml.YAMLError) as error:
            unreadable[name] = str(error).splitlines()[0]
    return Collection(runs, unreadable)


def _run_directories(directory: Path) -> list[Path]:
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory")
    found = []
    for config in directory.resolve().rglob(CONFIG):
        place = config.parent
        hidden = any(part.startswith(".") for part in place.relative_to(directory.resolve()).parts)
        if not hidden and any((place / name).exists() for name in (METRICS, STATUS, RESULT)):
            found.append(place)
    return found


def read_run(directory: Path, name: str) -> Run:
    """Read one run directory; raises ValueError if its config.yaml holds no mapping."""
    text = (directory / CONFIG).read_text()
    config = yaml.safe_load(text)
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG} holds no mapping")
    settings = YOUNGER | flatten(config) | {"command": command_line_of(text)}
    status, result = read_json(directory / STATUS), read_json(directory / RESULT)
    state = str(status.get("state") or ("finished" if result else "unknown"))
    lines = str(status.get("error") or "").strip().splitlines()
    return Run(name, settings, state, lines[-1] if lines else "", result, read_curves(directory / METRICS))


def read_curves(path: Path) -> dict[str, Curve]:
    """Every tag's curve; lines that a kill has cut are passed over, and the last row of a step counts."""
    points: dict[str, dict[float, float]] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            step = float(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for tag, value in row.items():
            if isinstance(value, int | float) and np.isfinite(value):
                points.setdefault(tag, {})[step] = float(value)
    return {tag: _curve(by_step) for tag, by_step in points.items()}


def _curve(by_step: dict[float, float]) -> Curve:
    steps = np.array(sorted(by_step))
    return Curve(steps, np.array([by_step[step] for step in steps]))
