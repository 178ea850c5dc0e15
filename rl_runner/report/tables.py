"""The tables of a report; one content for the page, Markdown, CSV and the terminal."""

import csv
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from rl_runner.report.aggregate import Aggregate
from rl_runner.report.grouping import Study
from rl_runner.report.load import Array, Collection, Run
from rl_runner.report.reference import Reference
from rl_runner.report.sentences import QUANTITIES, Comparison, Words, bracket, mean_text, number, words_for
from rl_runner.report.statistics import Interval, summarize

NONE = "–"


@dataclass(frozen=True)
class Table:
    """Text cells under headings; the first `names` columns are names, the others figures."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    strong: frozenset[int] = field(default_factory=frozenset)

    def html(self) -> str:
        head = "".join(f"<th{self._side(i)}>{html.escape(cell)}</th>" for i, cell in enumerate(self.head))
        body = "".join(self._html_row(i, row) for i, row in enumerate(self.rows))
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def _html_row(self, index: int, row: Sequence[str]) -> str:
        cells = "".join(f"<td{self._side(i)}>{prose(cell)}</td>" for i, cell in enumerate(row))
        return f"<tr{' class=best' if index in self.strong else ''}>{cells}</tr>"

    def _side(self, column: int) -> str:
        return "" if column < self.names else ' class="num"'

    def markdown(self) -> str:
        rule = ["---" if i < self.names else "---:" for i in range(len(self.head))]
        rows = [self.head, rule, *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)

    def text(self) -> str:
        rows = [self.head, *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.head))]
        pad = [str.ljust if i < self.names else str.rjust for i in range(len(self.head))]
        return "\n".join("  ".join(p(c, w) for p, c, w in zip(pad, row, widths, strict=True)).rstrip() for row in rows)

    def csv(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([self.head, *self.rows])


def prose(text: str) -> str:
    """Escaped text with true minus signs, and intervals that no line breaks."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", html.escape(text, quote=False).strip())
    return re.sub(r"(?<=\d), (?=[−\d])", ",\u00a0", text.replace(" [", "\u00a0["))


def results(study: Study, reference: Reference) -> dict[str, Table]:
    """Per environment: every group's final scores, best mean first, and the published ones at the same step."""
    return {env: _environment(study, env, reference) for env in study.envs}


def _environment(study: Study, env: str, reference: Reference) -> Table:
    words = words_for(study.tag)
    head = ["group", "seeds", "mean", "SD", words.extreme, "95 % interval", "failed", "unfinished"]
    scores = {group: study.scores(env, group) for group in study.groups_in(env)}
    ranked = sorted(scores, key=lambda group: -scores[group].mean() if len(scores[group]) else float("inf"))
    rows = [[group, *_figures(scores[group], words), *_losses(study.cells[env, group])] for group in ranked]
    published = reference.at(env, budget(study, env))
    rows += [[method, *_figures(values, words), NONE, NONE] for method, values in published.items()]
    return Table(head, rows, strong=frozenset([0] if len(ranked) > 1 and len(scores[ranked[0]]) else []))


def by_environment(tables: dict[str, Table]) -> Table:
    """Tables with the same head as one, the environment in front."""
    head = ["environment", *next(iter(tables.values())).head]
    return Table(head, [[env, *row] for env, table in tables.items() for row in table.rows], names=2)


def budget(study: Study, env: str) -> int:
    """The largest total_steps among an environment's runs."""
    return max(int(run.settings.get("total_steps") or 0) for (name, _), cell in study.cells.items() if name == env
               for run in cell)  # fmt: skip


def _figures(scores: Array, words: Words) -> list[str]:
    if not len(scores):
        return ["0", NONE, NONE, NONE, NONE]
    summary = summarize(scores)
    half = summary.interval.half if summary.interval else 0
    sd = NONE if summary.sd is None else number(summary.sd, half)
    interval = bracket(summary.interval) if summary.interval else NONE
    extreme = number(summary.lowest, half)
    if words is QUANTITIES:
        extreme += f" to {number(summary.highest, half)}"
    return [str(summary.n), mean_text(scores), sd, extreme, interval]


def _losses(cell: Sequence[Run]) -> list[str]:
    failed = sum(run.status == "failed" for run in cell)
    return [str(failed or NONE), str(sum(not run.finished for run in cell) - failed or NONE)]


def speed(study: Study) -> Table:
    """Training speed of the finished runs, evaluation excluded."""
    rows = []
    for env in study.envs:
        for group in study.groups_in(env):
            results = [run.result for run in study.cells[env, group] if run.finished]
            cells = [_mean(results, "sps", 0), _mean(results, "updates", 0), _mean(results, "wall_seconds", 1)]
            rows.append([env, group, str(len(results)), *cells])
    return Table(["environment", "group", "runs", "steps per second", "updates", "wall seconds"], rows, names=2)


def _mean(results: Sequence[dict[str, float]], key: str, digits: int) -> str:
    values = [result[key] for result in results if isinstance(result.get(key), int | float)]
    return f"{fmean(values):.{digits}f}" if values else NONE


def every_run(study: Study) -> Table:
    """One row per run; the score in full precision."""
    head = ["environment", "group", "seed", "status", study.tag, "steps per second", "run"]
    rows = [
        [env, group, str(run.seed), run.status, _plain(run.score(study.tag)), _plain(run.result.get("sps")),
         run.name]
        for (env, group), cell in sorted(study.cells.items()) for run in cell
    ]  # fmt: skip
    return Table(head, rows, names=2)


def _plain(value: float | None) -> str:
    return NONE if value is None else f"{value:.6g}"


def casualties(study: Study, collection: Collection) -> Table:
    """Runs that give no final score, each with the last line of its error."""
    rows = [
        [run.name, env, group, str(run.seed), run.status, run.error or NONE]
        for (env, group), cell in sorted(study.cells.items())
        for run in cell
        if not run.finished
    ]
    rows += [[name, NONE, NONE, NONE, "unreadable", reason] for name, reason in collection.unreadable.items()]
    return Table(["run", "environment", "group", "seed", "status", "last error line"], rows, names=6)


def differences(comparisons: dict[str, list[Comparison]]) -> Table:
    """Every comparison in full precision."""
    head = ["environment", "leader", "other", "seeds", "seeds of other", "difference", "low", "high"]
    rows = []
    for env, found in comparisons.items():
        for c in found:
            low, high = c.interval or (None, None)
            seeds = [str(n) for n in c.seeds]
            rows.append([env, c.leader, c.other, *seeds, _plain(c.difference), _plain(low), _plain(high)])
    return Table(head, rows, names=3)


def across(aggregate: Aggregate, tag: str) -> Table:
    """Interquartile mean and probability of improvement over the group with the highest one."""
    missing = (None, None)
    rows = [
        [group, *_share(*estimate), *_share(*aggregate.improvement.get(group, missing))]
        for group, estimate in aggregate.iqm.items()
    ]
    head = ["group", "IQM", "95 % interval", f"P({aggregate.best} {words_for(tag).beats} it)", "95 % interval"]
    return Table(head, rows, strong=frozenset([0]))


def _share(value: float | None, interval: Interval | None) -> list[str]:
    shown = NONE if value is None else f"{value:.2f}"
    return [shown, f"[{interval.low:.2f}, {interval.high:.2f}]" if interval else NONE]


def settings(table: dict[str, dict[str, str]], groups: Sequence[str]) -> Table:
    """Every setting in which the groups differ, also those that follow from the algorithm or the environment."""
    rows = [[key, *values.values()] for key, values in table.items()]
    return Table(["setting", *groups], rows, names=1 + len(groups))
