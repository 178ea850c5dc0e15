"""The tables of a report: what they hold."""

import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from rl_runner.persistence import SWEEP, read_json
from rl_runner.report.aggregate import Aggregate, Estimate
from rl_runner.report.load import Array, Collection, Run
from rl_runner.report.names import plain
from rl_runner.report.reference import Reference
from rl_runner.report.sentences import QUANTITIES, Comparison, bracket, mean_text, number, words_for
from rl_runner.report.statistics import summarize
from rl_runner.report.study import LOSSES, Study
from rl_runner.report.table import Cell, Table


def results(study: Study, reference: Reference, comparisons: Mapping[str, list[Comparison]]) -> dict[str, Table]:
    """Per environment: every group's scores, best mean first, and the published ones at the same step.

    The best group stands out only where it can be told from every other.
    """
    return {env: _environment(study, env, reference, comparisons[env]) for env in study.envs}


def _environment(study: Study, env: str, reference: Reference, comparisons: Sequence[Comparison]) -> Table:
    head = ["group", "seeds", "mean", "SD", words_for(study.tag).extreme, "95 % interval", *LOSSES, "never updated"]
    rows: list[list[Cell]] = []
    for group, scores in _ranked(study, env):
        losses = study.losses(env, group)
        lost = [losses[word] or None for word in LOSSES]
        rows.append([group, *_figures(scores, study), *lost, "yes" if study.never_updated(env, group) else None])
    published = reference.at(env, budget(study, env))
    rows += [[method, *_figures(values, study), *[None] * (len(LOSSES) + 1)] for method, values in published.items()]
    winner = comparisons[0].leader if comparisons and all(found.decided for found in comparisons) else None
    return Table(head, rows, strong=frozenset(i for i, row in enumerate(rows) if row[0] == winner))


def _ranked(study: Study, env: str) -> list[tuple[str, Array]]:
    scores = [(group, study.scores(env, group)) for group in study.groups_in(env)]
    return sorted(scores, key=lambda item: -item[1].mean() if len(item[1]) else float("inf"))


def _figures(scores: Array, study: Study) -> list[Cell]:
    if not len(scores):
        return [0, None, None, None, None]
    summary = summarize(scores)
    half = summary.interval.half if summary.interval else 0
    sd = None if summary.sd is None else number(summary.sd, half)
    interval = bracket(summary.interval) if summary.interval else None
    extreme = number(summary.lowest, half)
    if words_for(study.tag) is QUANTITIES:
        extreme += f" to {number(summary.highest, half)}"
    return [summary.n, mean_text(scores), sd, extreme, interval]


def numbers(study: Study, reference: Reference) -> Table:
    """What `results` shows, as numbers in full precision."""
    losses = [word.replace(" ", "_") for word in LOSSES]
    head = ["environment", "group", "seeds", "mean", "sd", "lowest", "highest", "low", "high", *losses, "never_updated"]
    rows: list[list[Cell]] = []
    for env in study.envs:
        for group, scores in _ranked(study, env):
            counts = study.losses(env, group)
            lost = [counts[word] for word in LOSSES]
            rows.append([env, group, *_summary(scores), *lost, int(study.never_updated(env, group))])
        for method, scores in reference.at(env, budget(study, env)).items():
            rows.append([env, method, *_summary(scores), *[None] * (len(LOSSES) + 1)])
    return Table(head, rows, names=2)


def _summary(scores: Array) -> list[Cell]:
    if not len(scores):
        return [0, *[None] * 6]
    n, mean, sd, lowest, highest, interval = summarize(scores)
    ends = map(float, interval) if interval else (None, None)
    return [n, float(mean), None if sd is None else float(sd), float(lowest), float(highest), *ends]


def budget(study: Study, env: str) -> int:
    """The largest total_steps among an environment's runs."""
    return max(run.settings["total_steps"] for (name, _), cell in study.cells.items() if name == env for run in cell)


def speed(study: Study) -> Table:
    """Training speed of the finished runs, evaluation excluded."""
    rows: list[list[Cell]] = []
    for env in study.envs:
        for group in study.groups_in(env):
            finished = [run.result for run in study.cells[env, group] if run.finished]
            means = [_mean(finished, key) for key in ("sps", "updates", "wall_seconds")]
            rows.append([env, group, len(finished), *means])
    return Table(["environment", "group", "runs", "steps per second", "updates", "wall seconds"], rows, names=2)


def rounded(table: Table, digits: Mapping[str, int]) -> Table:
    """The table for people: the columns named by `digits` to so many decimals."""

    def cell(name: str, value: Cell) -> Cell:
        return f"{value:.{digits[name]}f}" if name in digits and isinstance(value, int | float) else value

    rows = [[cell(name, value) for name, value in zip(table.head, row, strict=True)] for row in table.rows]
    return Table(table.head, rows, table.names, table.strong)


def _mean(results: Sequence[dict[str, float]], key: str) -> float | None:
    values = [result[key] for result in results if key in result]
    return fmean(values) if values else None


def every_run(study: Study) -> Table:
    """One row per run; the score in full precision."""
    head = ["environment", "group", "seed", "status", study.tag, "steps per second", "run"]
    rows = [
        [env, group, run.seed, run.status, study.score(run), run.result.get("sps"), run.name]
        for (env, group), cell in sorted(study.cells.items()) for run in cell
    ]  # fmt: skip
    return Table(head, rows, names=2)


def casualties(study: Study, collection: Collection) -> Table:
    """Runs that give no score, each with the last line of its error, and what could not be read."""
    rows: list[list[Cell]] = [
        [run.name, env, group, run.seed, run.status, run.error or ("no score in it" if run.finished else None)]
        for (env, group), cell in sorted(study.cells.items())
        for run in cell
        if study.score(run) is None
    ]
    rows += [[name, None, None, None, "unreadable", reason] for name, reason in collection.unreadable.items()]
    return Table(["run", "environment", "group", "seed", "status", "last error line"], rows, names=6)


def differences(comparisons: Mapping[str, list[Comparison]]) -> Table:
    """Every comparison in full precision."""
    head = ["environment", "leader", "other", "seeds", "seeds of other", "difference", "low", "high"]
    rows: list[list[Cell]] = [
        [env, c.leader, c.other, *c.seeds, c.difference, *c.interval]
        for env, found in comparisons.items() for c in found
    ]  # fmt: skip
    return Table(head, rows, names=3)


def across(aggregate: Aggregate, tag: str) -> Table:
    """The probability that the best group beats another, and the interquartile mean where there is a scale."""
    beats = f"P(the first {words_for(tag).beats} it)"
    rows = [
        [group, *_share(aggregate.improvement.get(group)), *_share(aggregate.iqm.get(group))]
        for group in aggregate.ranked
    ]
    head = ["group", beats, "95 % interval", "IQM", "95 % interval"]
    return Table(head, rows, strong=frozenset([0] if aggregate.clear else []))


def _share(estimate: Estimate | None) -> list[Cell]:
    if estimate is None:
        return [None, None]
    value, interval = estimate
    return [f"{value:.2f}", f"[{interval.low:.2f}, {interval.high:.2f}]"]


def settings(table: dict[str, dict[str, str]], groups: Sequence[str]) -> Table:
    """Every setting in which the runs differ, also those that follow from the algorithm or the environment."""
    rows = [[plain(key), *values.values()] for key, values in table.items()]
    return Table(["setting", *groups], rows, names=1 + len(groups))


def commands(runs: Sequence[Run]) -> Table:
    """The commands that made the runs: of their sweep, or their own without the seed."""
    made: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        words, flag = read_json(run.directory.parent / SWEEP).get("command"), ""
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            words = [word for word in run.settings["command"] if not word.startswith("seed=")]
            flag = " seed=..." if len(words) < len(run.settings["command"]) else ""
        made[f"rl-runner {plain(shlex.join(words))}{flag}" if words or flag else ""].append(run)
    rows: list[list[Cell]] = [[command, len(members)] for command, members in made.items() if command]
    return Table(["command", "runs"], rows)
