"""The same results as Markdown, for documentation and pull requests."""

import os
from collections.abc import Sequence
from pathlib import Path

from rl_runner.report.build import Findings
from rl_runner.report.sentences import words_for
from rl_runner.report.tables import Table, results, speed


def markdown(findings: Findings, picture: Path, beside: Path) -> str:
    """Headline, one table, every conclusion and the curves; links are relative to `beside`."""
    link = Path(os.path.relpath(picture, beside)).as_posix()
    parts = [f"**{findings.headline}**", findings.facts + ".", _table(findings).markdown()]
    parts += [findings.warning] if findings.warning else []
    for env, sentences in findings.sentences().items():
        parts += ["\n".join([f"{env}:\n", *(f"- {sentence}" for sentence in sentences)])] if sentences else []
    parts.append(f"![{findings.study.tag} over training: mean, 95 % interval, every seed]({link})")
    return "\n\n".join(parts) + "\n"


def _table(findings: Findings) -> Table:
    speeds = {(row[0], row[1]): row[3] for row in speed(findings.study).rows}
    rows = []
    for env, table in results(findings.study, findings.reference).items():
        for group, n, mean, sd, extreme, interval, *_ in table.rows:
            rows.append([env, group, n, f"{mean} ± {sd}", extreme, interval, speeds.get((env, group), "–")])
    extreme = words_for(findings.study.tag).extreme
    head: Sequence[str] = ["env", "algorithm", "seeds", "mean ± SD", extreme, "95 % interval", "steps per second"]
    return Table(head, rows, names=2)
