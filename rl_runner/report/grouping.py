"""Which runs are seeds of the same thing: environment x group, a group being what really differs."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_runner.errors import UserError
from rl_runner.report.load import Array, Run

# Keys that say where, how fast or how often something is written or measured, not what is learned.
CANNOT_MATTER = {
    "accelerate", "checkpoint_every", "command", "device", "dry_run", "eval_episodes", "eval_every",
    "final_eval_episodes", "fresh", "log_every", "plugins", "threads", "replay.storage",
}  # fmt: skip
BOOKKEEPING = ("chosen.", "command", "env.")


@dataclass(frozen=True)
class Study:
    """Runs by (environment, group), each list ordered by seed."""

    cells: dict[tuple[str, str], list[Run]]
    envs: list[str]
    groups: list[str]
    repeated: list[Run]
    tag: str

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells.values() for run in cell]

    def groups_in(self, env: str) -> list[str]:
        return [group for group in self.groups if (env, group) in self.cells]

    def scores(self, env: str, group: str) -> Array:
        """Final scores [seeds] of the runs that finished."""
        scores = (run.score(self.tag) for run in self.cells.get((env, group), []))
        return np.array([score for score in scores if score is not None])


def build(runs: Sequence[Run], tag: str) -> Study:
    """Group the runs; a repeated (environment, group, seed) keeps its last finished run only."""
    known = {name for run in runs for name in [*run.result, *run.curves] if "/" in name}
    if known and tag not in known:
        if tag.startswith("eval/") and not any(name.startswith("eval/") for name in known):
            raise UserError(f"no run has been evaluated yet; choose with --tag from {', '.join(sorted(known))}")
        raise UserError(f"no run has the tag {tag}; there are {', '.join(sorted(known))}")
    envs = _environment_names(runs)
    keys = _distinguishing_keys(runs, envs)
    several = len({run.algo for run in runs}) > 1
    labels = [_label(run, keys[run.algo], several) for run in runs]
    slots: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    for run, env, label in zip(runs, envs, labels, strict=True):
        slots[env, label, run.seed].append(run)
    cells: dict[tuple[str, str], list[Run]] = defaultdict(list)
    repeated = []
    for (env, label, _), slot in sorted(slots.items(), key=lambda item: item[0][2]):
        *others, kept = sorted(slot, key=lambda run: (run.finished, run.name))
        cells[env, label].append(kept)
        repeated += others
    return Study(dict(cells), _ordered(envs), _ordered(labels), repeated, tag)


def _environment_names(runs: Sequence[Run]) -> list[str]:
    by_id: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_id[_env_id(run)].append(run)
    names = []
    for run in runs:
        differing = _varying(by_id[_env_id(run)], lambda key: key.startswith("env.") and key != "env.id")
        names.append(", ".join([_env_id(run), *_terms(run, sorted(differing))]))
    return names


def _env_id(run: Run) -> str:
    return str(run.settings.get("env.id") or run.settings.get("chosen.env") or "environment")


def _distinguishing_keys(runs: Sequence[Run], envs: Sequence[str]) -> dict[str, list[str]]:
    """Per algorithm, the fewest keys that tell its runs apart within an environment."""
    by_algo: dict[str, list[tuple[str, Run]]] = defaultdict(list)
    for run, env in zip(runs, envs, strict=True):
        by_algo[run.algo].append((env, run))
    return {algo: _refine(members) for algo, members in by_algo.items()}


def _refine(members: list[tuple[str, Run]]) -> list[str]:
    within = defaultdict(list)
    for env, run in members:
        within[env].append(run)
    differing = {key for cell in within.values() for key in _varying(cell, lambda key: not _ignored(key))}
    named = {term.split("=")[0].lstrip("+") for _, run in members for term in run.settings["command"]}
    kept: list[str] = []
    for key in sorted(differing, key=lambda key: (not _was_named(key, named), key)):
        if _classes(members, [*kept, key]) > _classes(members, kept):
            kept.append(key)
    # Runs that share a seed are no replicates: then even a key that "cannot matter" tells them apart.
    for key in sorted(key for cell in within.values() for key in _varying(cell, CANNOT_MATTER.__contains__)):
        if key != "command" and _classes(members, [*kept, "seed", key]) > _classes(members, [*kept, "seed"]):
            kept.append(key)
    return kept


def _ignored(key: str) -> bool:
    return key == "seed" or key in CANNOT_MATTER or key.startswith(BOOKKEEPING) or key.endswith("._partial_")


def _was_named(key: str, named: set[str]) -> bool:
    """Whether the command line set this key or chose its whole group."""
    return key in named or key.split(".")[0] in named


def _varying(runs: Sequence[Run], relevant: Any) -> set[str]:
    keys = {key for run in runs for key in run.settings if relevant(key)}
    return {key for key in keys if len({_value(run, key) for run in runs}) > 1}


def _classes(members: list[tuple[str, Run]], keys: list[str]) -> int:
    return len({(env, *(_value(run, key) for key in keys)) for env, run in members})


def _value(run: Run, key: str) -> str:
    value = run.settings.get(key)
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def _label(run: Run, keys: Sequence[str], several_algorithms: bool) -> str:
    terms = _terms(run, keys)
    return ", ".join([run.algo, *terms] if several_algorithms or not terms else terms)


def _terms(run: Run, keys: Sequence[str]) -> list[str]:
    names = [key.removesuffix("._target_").rpartition(".")[2] for key in keys]
    return [
        f"{name if names.count(name) == 1 else key}={_value(run, key)}"
        for key, name in zip(keys, names, strict=True)
        if key in run.settings
    ]


def _ordered(names: Iterable[str]) -> list[str]:
    """Alphabetical, with numbers inside the names by value."""
    number = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?)")

    def key(name: str) -> list[tuple[float, str]]:
        return [(float(part), "") if number.fullmatch(part) else (-1.0, part) for part in number.split(name)]

    return sorted(set(names), key=key)


def differing_settings(study: Study) -> dict[str, dict[str, str]]:
    """Every setting that is not the same in all runs, with its values per group: {key: {group: values}}."""
    table = {}
    for key in sorted(_varying(study.runs, lambda key: not _ignored(key))):
        values: dict[str, set[str]] = defaultdict(set)
        for (_, group), cell in study.cells.items():
            values[group] |= {_value(run, key) if key in run.settings else "-" for run in cell}
        table[key] = {group: " | ".join(_ordered(values[group])) for group in study.groups}
    return table
