"""Directories read as they lie there: runs finished, cut, failed, still running, damaged, or not ours at all."""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError, model_validator
from tqdm import tqdm

from rl_runner.config.schema import DEFAULTS_ADDED_LATER
from rl_runner.console import printable
from rl_runner.errors import UserError
from rl_runner.persistence import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    RESULT,
    SEARCH,
    STATUS,
    command_line_of,
    flatten,
    read_json,
)

Array = NDArray[np.float64]

BEGUN = {METRICS, RESULT, STATUS, CHECKPOINT}  # one of them lies in every run directory
STATES = ("running", "finished", "failed", "interrupted", "queued", "pruned")
LARGEST = 64 * 1024  # bytes of a config.yaml: ours have three thousand
END = 0.9  # of its steps have passed when a run's end begins


class Curve(NamedTuple):
    """One tag of one run; steps increase."""

    steps: Array
    values: Array


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What one run directory says.

    `name`: its path among the others. `settings`: config.yaml with dotted keys, and the command's words as `command`.
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

    def at_end(self, tag: str) -> float | None:
        """The mean of what was logged of a tag in the last tenth of the steps, or the last value before it."""
        if tag not in self.curves:
            return None
        steps, values = self.curves[tag]
        end = self.result.get("total_steps") or max(curve.steps[-1] for curve in self.curves.values())
        late = values[steps > END * end]
        return float(late.mean() if len(late) else values[-1])


class SearchTrial(BaseModel, strict=True):
    """A trial of a search; `value` is its score."""

    number: int
    state: str
    value: float | None
    params: dict[Any, Any]  # by name, which pydantic may take for no unicode

    @model_validator(mode="after")
    def _finished_with_a_score(self) -> Self:
        if self.state == "complete" and self.value is None:
            raise ValueError("a finished trial has a score")
        return self

    @property
    def shown(self) -> dict[Any, str]:
        """The parameters' values as text."""
        texts = {key: f"{value:.3g}" for key, value in self.params.items() if isinstance(value, float)}
        return {key: texts.get(key, printable(str(value))) for key, value in self.params.items()}


class SearchRecord(BaseModel, strict=True):
    """What a search over hyperparameters has found: its trials, and the share of each hyperparameter."""

    name: str
    trials: list[SearchTrial]
    importance: dict[Any, float]

    @property
    def ranked(self) -> list[SearchTrial]:
        """The trials that finished, the best one first."""
        finished = [trial for trial in self.trials if trial.state == "complete"]
        return sorted(finished, key=lambda trial: trial.value or 0, reverse=True)


class Collection(NamedTuple):
    """Everything that was found under the given directories."""

    runs: list[RunRecord]
    unreadable: dict[str, str]
    searches: list[SearchRecord]


def short_hash(name: str) -> str:
    """Six digits that stand for the rest of a name."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]


def file_name(name: str) -> str:
    """A name with nothing in it that a file system dislikes, neither signs nor length."""
    text = re.sub(r"[^A-Za-z0-9.-]", "_", name)
    return text if len(text) <= 120 else f"{text[:110]}_{short_hash(name)}"


def collect(directories: Sequence[Path]) -> Collection:
    """Read every run and search at or below the directories; UserError if there is no run that can be read."""
    inside, reasons = _walk(directories)
    paths = [path for path, names in inside.items() if names & {METRICS, RESULT} or (CONFIG in names and names & BEGUN)]
    where = ", ".join(str(directory) for directory in directories)
    if not paths and not reasons:
        raise UserError(f"no run in {where}: give a run's directory, a sweep's, or a folder that holds some")
    root = os.path.commonpath([path.parent for path in [*paths, *reasons]])
    named = {path: printable(path.relative_to(root).as_posix()) for path in [*paths, *reasons]}
    runs = []
    for path in tqdm(paths, "Reading runs", leave=False, disable=None):
        try:
            runs.append(_read_run(path, named[path]))
        except Exception as error:  # whatever a stranger's file makes of our readers
            line = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
            reasons[path] = printable(line)[:200] or type(error).__name__
    unreadable = {named[path]: reasons[path] for path in sorted(reasons)}
    if not runs:
        (name, reason), *others = unreadable.items()
        more = f", and {len(others)} more" if others else ""
        raise UserError(f"no run in {where} can be read: {name}: {reason}{more}")
    searches = []
    for path in (path for path, names in inside.items() if SEARCH in names):
        with suppress(ValidationError):  # of another program's file
            record = read_json(path / SEARCH) | {"name": printable(path.name)}
            searches.append(SearchRecord.model_validate(record))
    return Collection(runs, unreadable, searches)


def _walk(directories: Sequence[Path]) -> tuple[dict[Path, set[str]], dict[Path, str]]:
    """What lies in every directory at or below, each but once; the directories that cannot be read, with the reason.

    Links are followed, hidden directories passed over.
    """
    roots = []
    for directory in directories:
        try:
            if not directory.is_dir():
                raise UserError(f"{directory} is not a directory")
            roots.append(directory.resolve())
        except OSError as error:
            raise UserError(f"{directory} cannot be read: {error.strerror}") from error
    found: dict[Path, tuple[Path, set[str]]] = {}
    unreadable: dict[Path, str] = {}
    for root in roots:
        walk = os.walk(root, followlinks=True, onerror=lambda e: unreadable.update({Path(e.filename): str(e.strerror)}))
        for here, folders, files in walk:
            real = Path(os.path.realpath(here))
            names = {*folders, *files}
            # A loop of links, a second way to the same place, or a link to a folder that holds the given ones.
            known = real in found or any(real in given.parents for given in roots)
            folders[:] = [] if known else sorted(name for name in folders if not name.startswith("."))
            if not known:
                found[real] = (real if any(real.is_relative_to(given) for given in roots) else Path(here), names)
    return dict(sorted(found.values(), key=lambda item: item[0])), unreadable


def _read_run(directory: Path, name: str) -> RunRecord:
    """Read one run directory; ValueError if its config.yaml is not one of ours."""
    settings = flatten(DEFAULTS_ADDED_LATER) | _read_settings(directory / CONFIG)
    status, result = read_json(directory / STATUS), _numbers(read_json(directory / RESULT))
    state = status.get("state") or ("finished" if result else "unknown")
    state = state if state in STATES else "unknown"
    *_, line = ["", *str(status.get("error") or "").strip().splitlines()]
    return RunRecord(name, directory, settings, state, printable(line)[:300], result, read_curves(directory / METRICS))


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings of a config that has what a report needs, and its command."""
    if not path.is_file():
        raise ValueError(f"it has no file {CONFIG}")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{CONFIG} has {path.stat().st_size} bytes")
    text = path.read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError(f"{CONFIG} has aliases")  # which can stand for any number of values, and are not ours
    if not isinstance(config, Mapping):
        raise ValueError(f"{CONFIG} holds no mapping")
    settings = flatten(config) | {"command": []}
    with suppress(ValueError):  # of a line that is no command
        settings["command"] = command_line_of(text)
    for whole in ("seed", "total_steps"):
        if type(settings.get(whole)) is not int:
            raise ValueError(f"{CONFIG} has no whole number as {whole}")
    for part, keys in {"algo": ("chosen.algo", "algo._target_"), "env": ("env.id", "chosen.env")}.items():
        if not any(isinstance(settings.get(key), str) for key in keys):
            raise ValueError(f"{CONFIG} names no {part}")
    return settings


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
    return {tag: Curve(*np.array(sorted(by_step.items())).T.copy()) for tag, by_step in points.items()}


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a JSON object that can be drawn and averaged."""
    return {key: float(value) for key, value in row.items() if type(value) in (int, float) and abs(value) < 1e100}
