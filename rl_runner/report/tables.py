"""The tables of a report: what they hold, and how they are written as text, Markdown and CSV."""

import csv
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rl_runner.console import printable
from rl_runner.persistence import SWEEP, read_json
from rl_runner.report.aggregate import Aggregate, Estimate
from rl_runner.report.findings import Findings
from rl_runner.report.load import RunRecord, SearchRecord
from rl_runner.report.statistics import PERCENT
from rl_runner.report.study import LOSSES, QUANTITIES, Cell, Study, Words, grouped, in_order, value_of, varying

NONE = "–"
MARKDOWN = re.compile(r"[\\`*<$~&|#>]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^[-+](?=\s)|(?<=^\d)[.)](?=\s)", re.MULTILINE)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # begins what a spreadsheet takes for one
MOST_TRIALS = 10

Value = str | int | float | None


def markdown_escaped(text: str) -> str:
    """The text as Markdown shows it, whatever a name in it contains."""
    return MARKDOWN.sub(lambda sign: f"\\{sign[0]}", text)


@dataclass(frozen=True)
class Table:
    """Values under headings; the first `names` columns are names, the others figures.

    Columns without any content are shown nowhere but in CSV. `digits`: the decimals that a column is shown with.
    `strong`: the rows that stand out.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Value]]
    names: int = 1
    strong: frozenset[int] = frozenset()
    digits: Mapping[str, int] = field(default_factory=dict)

    def shown(self) -> tuple[list[int], list[str], list[list[str]]]:
        """The columns that have any content, their headings and cells as text."""
        rows = [[self._text(*pair) for pair in zip(self.head, row, strict=True)] for row in self.rows]
        columns = [i for i in range(len(self.head)) if i == 0 or not rows or any(row[i] != NONE for row in rows)]
        return columns, [self.head[i] for i in columns], [[row[i] for i in columns] for row in rows]

    def _text(self, name: str, value: Value) -> str:
        if name in self.digits and isinstance(value, int | float):
            return f"{value:.{self.digits[name]}f}"
        if isinstance(value, float):
            return f"{value:.6g}"
        return NONE if value is None or value == "" else str(value)

    def text(self) -> str:
        columns, head, rows = self.shown()
        widths = [max(map(len, cells)) for cells in zip(head, *rows, strict=True)]
        pads = [str.ljust if i < self.names else str.rjust for i in columns]
        padded = [[pad(cell, w) for pad, cell, w in zip(pads, line, widths, strict=True)] for line in [head, *rows]]
        return "\n".join("  ".join(line).rstrip() for line in padded)

    def write_csv(self, path: Path) -> None:
        """Write all columns, numbers in full precision, and no text that a spreadsheet takes for a formula."""
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(map(_spreadsheet_safe, row) for row in [self.head, *self.rows])


def _spreadsheet_safe(value: Value) -> Value:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def results(findings: Findings, env: str) -> Table:
    """Every group's scores in an environment, best mean first, and the published ones at the same step.

    The best group stands out only where it can be told from every other.
    """
    study, found = findings.study, findings.comparisons[env]
    head = ["group", "seeds", "mean", "SD", study.words.extreme, f"{PERCENT} interval", *LOSSES, "never updated"]
    rows: list[list[Value]] = []
    for cell in findings.ranked(env):
        lost = [cell.losses[word] or None for word in LOSSES]
        rows.append(
            [cell.group, len(cell.scores), *_rounded(cell, study), *lost, "yes" if cell.never_updated else None]
        )
    winner = found[0].leader.group if found and all(comparison.decided for comparison in found) else None
    return Table(head, rows, strong=frozenset(i for i, row in enumerate(rows) if row[0] == winner))


def _rounded(cell: Cell, study: Study) -> list[Value]:
    """Mean, SD, extremes and interval, to what the interval justifies."""
    if not len(cell.scores):
        return [None] * 4
    _, mean, sd, lowest, highest, interval = summary = cell.summary
    extremes = [lowest, highest] if study.words is QUANTITIES else [lowest]
    extreme = " to ".join(map(summary.rounded, extremes))
    return [summary.rounded(mean), sd if sd is None else summary.rounded(sd), extreme, interval and str(interval)]


def results_in_markdown(findings: Findings) -> Table:
    """Every environment's results, with the training speed."""
    rows: list[list[Value]] = []
    for cell in (cell for env in findings.study.envs for cell in findings.ranked(env)):
        mean, sd, extreme, interval = _rounded(cell, findings.study)
        seeds = f"{len(cell.scores)} ({cell.shortfall})" if cell.shortfall else len(cell.scores)
        spread = f"{mean or NONE} ± {sd or NONE}"
        rows.append([cell.env, cell.group, seeds, spread, extreme, interval, cell.mean_of("sps")])
    extreme = findings.study.words.extreme
    head = ["env", "algorithm", "seeds", "mean ± SD", extreme, f"{PERCENT} interval", "steps per second"]
    return Table(head, rows, names=2, digits={"steps per second": 0})


def results_in_full(findings: Findings) -> Table:
    """What `results` shows, as numbers in full precision."""
    losses = [word.replace(" ", "_") for word in LOSSES]
    head = ["environment", "group", "seeds", "mean", "sd", "lowest", "highest", "low", "high", *losses, "never_updated"]
    rows: list[list[Value]] = []
    for cell in (cell for env in findings.study.envs for cell in findings.ranked(env)):
        figures: list[Value] = [0, *[None] * 6]
        if len(cell.scores):
            *figures, interval = cell.summary
            figures += interval or (None, None)
        lost = [*(cell.losses[word] for word in LOSSES), int(cell.never_updated)]
        rows.append([cell.env, cell.group, *figures, *(lost if cell.runs else [None] * len(lost))])
    return Table(head, rows, names=2)


def speed(study: Study) -> Table:
    """Training speed of the finished runs, evaluation excluded."""
    digits = {"steps per second": 0, "updates": 0, "wall seconds": 1}
    rows: list[list[Value]] = []
    for cell in (cell for env in study.envs for cell in study.cells_in(env)):
        means = map(cell.mean_of, ("sps", "updates", "wall_seconds"))
        rows.append([cell.env, cell.group, sum(run.finished for run in cell.runs), *means])
    return Table(["environment", "group", "runs", *digits], rows, names=2, digits=digits)


def curves(study: Study) -> Table:
    """The groups' learning curves."""
    rows: list[list[Value]] = []
    for cell in study.cells.values():
        points = zip(*(cell.band(study.tag) or ()), strict=True)
        rows += [[cell.env, cell.group, *map(float, point)] for point in points]
    return Table(["environment", "group", "step", "mean", "low", "high"], rows)


def every_run(study: Study) -> Table:
    """One row per run; the score in full precision."""
    head = ["environment", "group", "seed", "status", study.tag, "steps per second", "run"]
    rows = [
        [*place, run.seed, run.status, study.score(run), run.result.get("sps"), run.name]
        for place, cell in sorted(study.cells.items()) for run in cell.runs
    ]  # fmt: skip
    return Table(head, rows, names=2)


def failed_runs(findings: Findings) -> Table:
    """Runs that give no score, each with the last line of its error, and what could not be read."""
    study, unreadable = findings.study, findings.collection.unreadable
    rows: list[list[Value]] = [
        [run.name, *place, run.seed, run.status, run.error or ("no score in it" if run.finished else None)]
        for place, cell in sorted(study.cells.items()) for run in cell.runs if study.score(run) is None
    ]  # fmt: skip
    rows += [[name, None, None, None, "unreadable", reason] for name, reason in unreadable.items()]
    return Table(["run", "environment", "group", "seed", "status", "last error line"], rows, names=6)


def differences(findings: Findings) -> Table:
    """Every comparison in full precision."""
    head = ["environment", "leader", "other", "seeds", "seeds of other", "difference", "low", "high"]
    rows: list[list[Value]] = [
        [env, c.leader.group, c.other.group, len(c.leader.scores), len(c.other.scores), c.difference, *c.interval]
        for env, found in findings.comparisons.items() for c in found
    ]  # fmt: skip
    return Table(head, rows, names=3)


def across(aggregate: Aggregate, words: Words) -> Table:
    """The probability that the best group beats another, and the interquartile mean where there is a scale.

    The best group stands out only where it can be told from every other.
    """
    head = ["group", f"P(the first {words.beats} it)", f"{PERCENT} interval", "IQM", f"{PERCENT} interval"]
    ranked = list(aggregate.iqm) or [aggregate.best, *aggregate.improvement]
    rows = [[group, *_share(aggregate.improvement.get(group)), *_share(aggregate.iqm.get(group))] for group in ranked]
    clear = all(interval.low > 0.5 for _, interval in aggregate.improvement.values())
    return Table(head, rows, strong=frozenset([0] if clear else []))


def _share(estimate: Estimate | None) -> list[Value]:
    if estimate is None:
        return [None, None]
    value, interval = estimate
    return [f"{value:.2f}", f"[{interval.low:.2f}, {interval.high:.2f}]"]


def settings(study: Study) -> Table:
    """Every setting that is not the same in all runs, also if it follows from the algorithm or the environment."""
    keys = [key for key in varying(study.runs) if not key.startswith("chosen.") and not key.endswith("._partial_")]
    cells = study.cells.values()
    members = [[run for cell in cells if cell.group == group for run in cell.runs] for group in study.groups]
    rows = []
    for key in sorted({*keys} - {"seed", "env.id", "command"}):
        values = [{printable(value_of(run, key)) if key in run.settings else "-" for run in runs} for runs in members]
        rows.append([printable(key), *(" | ".join(in_order(found)) for found in values)])
    return Table(["setting", *study.groups], rows, names=1 + len(study.groups))


def commands(runs: Sequence[RunRecord]) -> Table:
    """The commands that made the runs: of their sweep, or their own without the seed."""
    rows: list[list[Value]] = [[command, len(made)] for command, made in grouped(runs, _command).items() if command]
    return Table(["command", "runs"], rows)


def _command(run: RunRecord) -> str:
    words, flag = read_json(run.directory.parent / SWEEP).get("command"), ""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        words = [word for word in run.settings["command"] if not word.startswith("seed=")]
        flag = " seed=..." if len(words) < len(run.settings["command"]) else ""
    return f"rl-runner {printable(shlex.join(words))}{flag}" if words or flag else ""


def search_trials(search: SearchRecord) -> Table:
    """The best trials of a search."""
    best = search.ranked[:MOST_TRIALS]
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    rows = [[str(trial.number), *map(trial.shown.get, keys), f"{trial.value:.4g}"] for trial in best]
    return Table(["trial", *map(printable, keys), "score"], rows)
