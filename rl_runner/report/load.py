"""Run directories read as they lie there: finished, cut, failed, still running, damaged, or not ours at all."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from rl_runner.config.schema import DEFAULTS_ADDED_LATER
from rl_runner.errors import UserError
from rl_runner.report.names import plain
from rl_runner.report.places import places
from rl_runner.report.progress import progress
from rl_runner.rundir import CHECKPOINT, CONFIG, METRICS, RESULT, STATUS, command_line_of, flatten, read_json

Array = NDArray[np.float64]

BEGUN = {METRICS, RESULT, STATUS, CHECKPOINT}  # one of them lies in every run directory
STATES = {"running", "finished", "failed", "interrupted", "queued", "pruned"}
LARGEST = 64 * 1024  # bytes of a config.yaml: ours have three thousand
MOST_VALUES = 10_000  # in a config.yaml, whose aliases may stand for any number of them
END = 0.9  # of its steps have passed when a run's end begins


class Curve(NamedTuple):
    """One tag of one run; steps increase."""

    steps: Array
    values: Array


@dataclass(frozen=True)
class Run:
    """What one run directory says; `settings` is config.yaml with dotted keys, `name` its path among the others.

    `result`: the numbers of result.json.
    """

    name: str
    directory: Path
    settings: dict[str, Any]
    status: str
    error: str
    result: dict[str, float]
    curves: dict[str, Curve]

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def algo(self) -> str:
        target = str(self.settings.get("algo._target_"))
        return str(self.settings.get("chosen.algo") or target.rpartition(".")[2].lower())

    @property
    def env_id(self) -> str:
        return str(self.settings.get("env.id") or self.settings.get("chosen.env"))

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    @property
    def never_updated(self) -> bool:
        return self.finished and self.result.get("updates") == 0

    @property
    def tags(self) -> set[str]:
        return {tag for tag in self.result if "/" in tag} | set(self.curves)

    def at_end(self, tag: str) -> float | None:
        """The mean of what was logged of a tag in the last tenth of the steps, or the last value before it."""
        if tag not in self.curves:
            return None
        steps, values = self.curves[tag]
        end = self.result.get("total_steps") or max(curve.steps[-1] for curve in self.curves.values())
        late = values[steps > END * end]
        return float(late.mean() if len(late) else values[-1])


class Collection(NamedTuple):
    """Everything that was found under the given directories."""

    runs: list[Run]
    unreadable: dict[str, str]


def collect(directories: Sequence[Path]) -> Collection:
    """Read every run at or below the directories; a broken or foreign one is named, never fatal."""
    names, closed = places(directories)
    begun = [path for path, inside in names.items() if inside & BEGUN]
    paths = [path for path in begun if CONFIG in names[path]]
    headless = [path for path in begun if CONFIG not in names[path] and names[path] & {METRICS, RESULT}]
    reasons = closed | dict.fromkeys(headless, f"it has no {CONFIG}")
    where = ", ".join(str(directory) for directory in directories)
    if not paths and not reasons:
        raise UserError(f"no run in {where}: give a run's directory, a sweep's, or a folder that holds some")
    root = os.path.commonpath([path.parent for path in [*paths, *reasons]])
    named = {path: plain(path.relative_to(root).as_posix()) for path in [*paths, *reasons]}
    runs = []
    for path in progress(paths, "Reading runs"):
        try:
            runs.append(read_run(path, named[path]))
        except Exception as error:  # whatever a stranger's file makes of our readers
            reasons[path] = reason_of(error)
    unreadable = {named[path]: reasons[path] for path in sorted(reasons)}
    if not runs:
        first, *others = unreadable.items()
        more = f", and {len(others)} more" if others else ""
        raise UserError(f"no run in {where} can be read: {first[0]}: {first[1]}{more}")
    return Collection(runs, unreadable)


def reason_of(error: Exception) -> str:
    """An error in one line."""
    line = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return plain(line)[:200] or type(error).__name__


def read_run(directory: Path, name: str) -> Run:
    """Read one run directory; ValueError if its config.yaml is not one of ours."""
    text = _text(directory / CONFIG)
    config = yaml.safe_load(text)
    settings = DEFAULTS_ADDED_LATER | _checked(config) | {"command": _command(text)}
    status = read_json(directory / STATUS)
    result = _numbers(read_json(directory / RESULT))
    state = status.get("state") or ("finished" if result else "unknown")
    lines = str(status.get("error") or "").strip().splitlines()
    error = plain(lines[-1])[:300] if lines else ""
    known = state if isinstance(state, str) and state in STATES else "unknown"
    return Run(name, directory, settings, known, error, result, read_curves(directory / METRICS))


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes")
    return path.read_text(encoding="utf-8")


def _checked(config: Any) -> dict[str, Any]:
    """The settings of a config that has what a report needs."""
    if not isinstance(config, Mapping):
        raise ValueError(f"{CONFIG} holds no mapping")
    waiting: list[Any] = [config]
    seen = 0
    while waiting:
        tree = waiting.pop()
        seen += len(tree)
        if seen > MOST_VALUES:
            raise ValueError(f"{CONFIG} holds more than {MOST_VALUES} values")
        waiting += [value for value in (tree.values() if isinstance(tree, Mapping) else tree)
                    if isinstance(value, Mapping | list | tuple | set)]  # fmt: skip
    settings = flatten(config)
    for whole in ("seed", "total_steps"):
        if not isinstance(settings.get(whole), int) or isinstance(settings[whole], bool):
            raise ValueError(f"{CONFIG} has no whole number as {whole}")
    for part, keys in {"algo": ("chosen.algo", "algo._target_"), "env": ("env.id", "chosen.env")}.items():
        if not any(isinstance(settings.get(key), str) for key in keys):
            raise ValueError(f"{CONFIG} names no {part}")
    return settings


def _command(text: str) -> list[str]:
    try:
        return command_line_of(text)
    except ValueError:
        return []


def _number(value: object) -> float | None:
    """A JSON value as a number that can be drawn and averaged."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e100:
        return None
    return float(value)


def _numbers(row: Mapping[str, object]) -> dict[str, float]:
    numbers = {name: _number(value) for name, value in row.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def read_curves(path: Path) -> dict[str, Curve]:
    """Every tag's curve; lines that a kill has cut are passed over, and the last row of a step counts."""
    points: dict[str, dict[float, float]] = {}
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = _numbers(json.loads(line))
            except (ValueError, AttributeError, RecursionError):
                continue
            step = row.pop("step", math.nan)
            for tag, value in row.items() if step >= 0 else ():
                points.setdefault(tag, {})[step] = value
    return {tag: _curve(by_step) for tag, by_step in points.items()}


def _curve(by_step: dict[float, float]) -> Curve:
    steps = np.array(sorted(by_step))
    return Curve(steps, np.array([by_step[step] for step in steps]))
