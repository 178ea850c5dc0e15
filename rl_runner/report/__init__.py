"""Reports over runs: `rl-runner report DIR...` turns run directories into one page with the answer."""

import os
from collections.abc import Sequence
from pathlib import Path

from rl_runner.commands import SCORE, parse
from rl_runner.errors import UserError
from rl_runner.report.aggregate import Reference, read_reference
from rl_runner.report.page import Findings, search_text, write

NAMED = 5  # unreadable runs in the terminal


def write_report(
    directories: Sequence[Path],
    out: Path,
    title: str | None = None,
    tag: str = SCORE,
    reference: Reference | None = None,
) -> Path:
    """Write the report over all runs at or below the directories into `out`; returns index.html's path."""
    findings = Findings(directories, tag, reference or Reference())
    return write(findings, out, title or default_title(directories))


def summary(directories: Sequence[Path], tag: str = SCORE) -> str:
    """The report's headline, tables and sentences as plain text for a terminal."""
    return as_text(Findings(directories, tag, Reference()))


def as_text(findings: Findings) -> str:
    """Findings as plain text."""
    parts = [findings.headline]
    for env, table in findings.results.items():
        parts.append("\n".join([env, table.text(), *(sentence for sentence, _ in findings.answers(env))]))
    parts += [f"{search.name}: {search_text(search)}" for search in findings.collection.searches]
    unreadable = [f"{name}: {reason}" for name, reason in findings.collection.unreadable.items()]
    more = [f"and {len(unreadable) - NAMED} more, see the page"] if len(unreadable) > NAMED else []
    lost = "\n".join([findings.warning, *unreadable[:NAMED], *more])
    return "\n\n".join([*parts, lost]).strip()


def default_title(directories: Sequence[Path]) -> str:
    return f"Report: {', '.join(directory.resolve().name for directory in directories)}"


def main(argv: Sequence[str]) -> int:
    """The command line of `rl-runner report`; prints the conclusions and the page's place."""
    options = parse("report", argv)
    reference = read_reference(options.reference, options.method) if options.reference else Reference()
    findings = Findings(options.directories, options.tag, reference)
    shared = os.path.commonpath([directory.resolve() for directory in options.directories])
    out = options.out or Path(shared, "report")
    try:
        page = write(findings, out, options.title or default_title(options.directories))
        if options.markdown:
            options.markdown.parent.mkdir(parents=True, exist_ok=True)
            text = findings.markdown(out / "curves.png", options.markdown.parent)
            options.markdown.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}; see --out") from error
    print(as_text(findings), f"\nReport: {page}", sep="\n")
    return 0
