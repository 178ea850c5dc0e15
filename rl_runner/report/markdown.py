"""The same results as Markdown, for documentation and pull requests."""

import os
from pathlib import Path

from rl_runner.report.build import Findings
from rl_runner.report.names import markdown_escaped
from rl_runner.report.sentences import words_for
from rl_runner.report.table import NONE, Cell, Table
from rl_runner.report.tables import speed


def markdown(findings: Findings, picture: Path, beside: Path) -> str:
    """Headline, one table, every conclusion and the curves; links are relative to `beside`."""
    link = Path(os.path.relpath(picture, beside)).as_posix()
    facts, warning = markdown_escaped(findings.facts), markdown_escaped(findings.warning)
    parts = [f"**{markdown_escaped(findings.headline)}**", facts + ".", _table(findings).markdown()]
    parts += [warning] if warning else []
    for env, sentences in findings.sentences().items():
        listed = [f"- {markdown_escaped(sentence)}" for sentence in sentences]
        parts += ["\n".join([f"{markdown_escaped(env)}:\n", *listed])] if listed else []
    tag = markdown_escaped(findings.study.tag)
    parts.append(f"![{tag} over training: mean, 95 % interval, every seed]({link})")
    return "\n\n".join(parts) + "\n"


def _table(findings: Findings) -> Table:
    study = findings.study
    speeds = {(row[0], row[1]): row[3] for row in speed(study).rows}
    rows: list[list[Cell]] = []
    for env, table in findings.results.items():
        for group, n, mean, sd, extreme, interval, *_ in table.rows:
            lost = study.shortfall(env, str(group))
            seeds = f"{n} ({lost})" if lost else n
            rate = speeds.get((env, group))
            told = rate if rate is None else f"{rate:.0f}"
            rows.append([env, group, seeds, f"{_shown(mean)} ± {_shown(sd)}", extreme, interval, told])
    head = ["env", "algorithm", "seeds", "mean ± SD", words_for(study.tag).extreme, "95 % interval", "steps per second"]
    return Table(head, rows, names=2)


def _shown(cell: Cell) -> str:
    return NONE if cell is None else str(cell)
