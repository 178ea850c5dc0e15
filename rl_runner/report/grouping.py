"""Which runs are seeds of the same thing: environment x group, a group being what really differs."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from rl_runner.errors import UserError
from rl_runner.report.load import Run
from rl_runner.report.names import plain, shown
from rl_runner.report.study import Study

# Keys that say where, how fast or how often something is written or measured, not what is learned.
CANNOT_MATTER = {
    "accelerate", "checkpoint_every", "command", "device", "dry_run", "eval_episodes", "eval_every",
    "final_eval_episodes", "fresh", "log_every", "plugins", "threads", "replay.storage",
}  # fmt: skip
BOOKKEEPING = ("chosen.", "command", "env.")


def build(runs: Sequence[Run], tag: str) -> Study:
    """Group the runs; a repeated (environment, group, seed) keeps its last finished run only."""
    _check(runs, tag)
    envs = _environment_names(runs)
    keys = _distinguishing_keys(runs, envs)
    several = len({run.algo for run in runs}) > 1
    labels = [_label(run, keys[run.algo], several) for run in runs]
    slots: dict[tuple[str, str, int], list[Run]] = defaultdict(list)
    names = shown(_ordered(envs)) | shown(_ordered(labels))
    for run, env, label in zip(runs, envs, labels, strict=True):
        slots[names[env], names[label], run.seed].append(run)
    cells: dict[tuple[str, str], list[Run]] = defaultdict(list)
    repeated = []
    for (env, label, _), slot in sorted(slots.items(), key=lambda item: item[0][2]):
        *others, kept = sorted(slot, key=lambda run: (run.finished, run.name))
        cells[env, label].append(kept)
        repeated += others
    ordered, groups = ([names[name] for name in _ordered(found)] for found in (envs, labels))
    final = any(tag in run.result for run in runs)
    named_by = {"algo._target_", *(key for named in keys.values() for key in named)}
    cut = {short: plain(name) for name, short in names.items() if short != plain(name)}
    return Study(dict(cells), ordered, groups, repeated, tag, final, frozenset(named_by), cut)


def _check(runs: Sequence[Run], tag: str) -> None:
    """UserError if no run has the tag, with those that there are."""
    tags = {name for run in runs if run.finished for name in run.tags} or {name for run in runs for name in run.tags}
    if not tags or tag in tags:
        return
    known = ", ".join(plain(name) for name in sorted(tags))
    if tag.startswith("eval/") and not any(name.startswith("eval/") for name in tags):
        raise UserError(f"no run has been evaluated yet; choose with --tag from {known}")
    raise UserError(f"no run has the tag {tag}; there are {known}")


def _environment_names(runs: Sequence[Run]) -> list[str]:
    by_id: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_id[run.env_id].append(run)
    names = []
    for run in runs:
        differing = _varying(by_id[run.env_id], lambda key: key.startswith("env.") and key != "env.id")
        names.append(", ".join([run.env_id, *_terms(run, sorted(differing))]))
    return names


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


def _worth_listing(key: str) -> bool:
    return key not in ("seed", "env.id", "command") and not key.startswith("chosen.") and not key.endswith("._partial_")


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
    keys = _varying(study.runs, _worth_listing)
    table = {}
    for key in sorted(keys):
        values: dict[str, set[str]] = defaultdict(set)
        for (_, group), cell in study.cells.items():
            values[group] |= {plain(_value(run, key)) if key in run.settings else "-" for run in cell}
        table[key] = {group: " | ".join(_ordered(values[group])) for group in study.groups}
    return table


def unnamed_differences(study: Study) -> list[str]:
    """The settings, known to all groups of an environment, in which these differ though their names do not say so."""
    found = set()
    for env in study.envs:
        cells = [study.cells[env, group] for group in study.groups_in(env)]
        runs = [run for cell in cells for run in cell]
        for key in _varying(runs, lambda key: not _ignored(key) and key not in study.named_by):
            values = [{_value(run, key) for run in cell} for cell in cells]
            if all(key in run.settings for run in runs) and any(other != values[0] for other in values):
                found.add(key)
    return sorted(found)
