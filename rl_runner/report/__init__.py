"""Reports over runs: `rl-runner report DIR...` turns run directories into one page that needs nothing but itself."""

import html
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup
from tqdm import tqdm

from rl_runner import __version__
from rl_runner.commands import parse
from rl_runner.console import printable
from rl_runner.errors import UserError
from rl_runner.report import tables
from rl_runner.report.aggregate import Reference, read_reference
from rl_runner.report.findings import Findings, missing_seeds, search_text
from rl_runner.report.plots import INKS, Picture, Studio
from rl_runner.report.statistics import PERCENT, coverage
from rl_runner.report.study import RETURNS
from rl_runner.report.tables import Table, markdown_escaped

DIAGNOSTICS = {
    "eval/exact_return": "Exact value of the greedy policy",
    "values/q_error_max": "Largest error of Q",
    "eval/q_bias": "Q bias: estimate minus return",
    "values/q_mean": "Mean Q",
    "losses/td_loss": "TD loss",
    "policy/entropy": "Policy entropy",
    "policy/alpha": "Temperature α",
}


def prose(text: str) -> Markup:
    """Escaped text with true minus signs, and intervals that no line breaks."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", html.escape(text, quote=False).strip())
    return Markup(re.sub(r"(?<=\d), (?=[−\d])", ",\u00a0", text.replace(" [", "\u00a0[")))


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=jinja2.select_autoescape(), trim_blocks=True,
    lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
TEMPLATES.filters |= {"prose": prose, "md": markdown_escaped, "search_text": search_text}
TEMPLATES.globals["percent"] = PERCENT


class Section(NamedTuple):
    """A part of the page; `answers`: sentences, and whether they leave something open."""

    title: str
    text: str = ""
    answers: Sequence[tuple[str, bool]] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    more: Sequence[Picture] = ()


def as_text(findings: Findings) -> str:
    """Headline, tables and every conclusion as plain text for a terminal."""
    results = {env: tables.results(findings, env) for env in findings.study.envs}
    return TEMPLATES.get_template("terminal.txt").render(findings=findings, results=results).strip()


def as_markdown(findings: Findings, picture: Path, beside: Path) -> str:
    """Headline, one table, every conclusion and the curves, as Markdown; links are relative to `beside`."""
    link = Path(os.path.relpath(picture, beside)).as_posix()
    table = tables.results_in_markdown(findings)
    return TEMPLATES.get_template("template.md").render(findings=findings, table=table, link=link)


def main(argv: Sequence[str]) -> int:
    """The command line of `rl-runner report`; prints the conclusions and the page's place."""
    options = parse("report", argv)
    reference = read_reference(options.reference, options.method) if options.reference else Reference()
    findings = Findings(options.directories, options.tag, reference)
    shared = os.path.commonpath([directory.resolve() for directory in options.directories])
    out = options.out or Path(shared, "report")
    try:
        page = write(findings, out, options.title)
        if options.markdown:
            options.markdown.parent.mkdir(parents=True, exist_ok=True)
            text = as_markdown(findings, out / "curves.png", options.markdown.parent)
            options.markdown.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}; see --out") from error
    print(as_text(findings), f"\nReport: {page}", sep="\n")
    return 0


def write(findings: Findings, out: Path, title: str | None = None) -> Path:
    """Write index.html, the PNGs and the CSVs; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    study = findings.study
    title = title or f"Report: {', '.join(directory.resolve().name for directory in findings.directories)}"
    studio = Studio(findings, out)
    folded = {
        "Settings that differ": tables.settings(study),
        "Names in full": Table(["shown as", "in full"], list(study.cut.items()), names=2),
        "Commands": tables.commands(study.runs),
        "All runs": tables.every_run(study),
    }
    folded = {name: table for name, table in folded.items() if table.rows}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the PNGs' font has not; the page's has
        sections = list(_sections(findings, studio))
        studio.overview()
    page = TEMPLATES.get_template("template.html").render(
        findings=findings, title=printable(title), inks=INKS, legend=studio.legend(study.groups), sections=sections,
        folded=folded, coverage=coverage(len(cell.runs) for cell in study.cells.values()), version=__version__,
    )  # fmt: skip
    (out / "index.html").write_text(page, encoding="utf-8")
    named = {
        "results": tables.results_in_full(findings),
        "differences": tables.differences(findings),
        "speed": tables.speed(study),
        "curves": tables.curves(study),
    }
    for name, table in (named | folded).items():
        table.write_csv(out / f"{name.lower().replace(' ', '_')}.csv")
    return out / "index.html"


def _sections(findings: Findings, studio: Studio) -> Iterator[Section]:
    study = findings.study
    for search in findings.collection.searches:
        yield Section(
            f"Search {search.name}", search_text(search), table=tables.search_trials(search),
            pictures=list(studio.search(search)),
        )  # fmt: skip
    if over := findings.aggregate:
        missing = missing_seeds((cell for cell in study.cells.values() if cell.env in over.envs), with_env=True)
        text = f"Over {', '.join(over.envs)}{missing}. {over.scale(study.envs)}"
        pictures = [studio.iqm(over), studio.profiles(over)] if over.anchored else []
        yield Section("Across environments", text, table=tables.across(over, study.words), pictures=pictures)
    for env in tqdm(study.envs, "Drawing", leave=False, disable=None):
        answers = [answer for answer in findings.answers(env) if answer[0] not in findings.headline]
        cells = study.cells_in(env)
        present = {tag for cell in cells for run in cell.runs for tag in run.curves}
        title = "Learning curve" if study.words is RETURNS else DIAGNOSTICS.get(study.tag, study.tag)
        pictures = [studio.curves(env, study.tag, title)] if study.tag in present else []
        pictures += [studio.final_scores(env)] if any(len(cell.scores) for cell in cells) else []
        behind = [tag for tag in DIAGNOSTICS if tag in present and tag != study.tag]
        more = [studio.curves(env, tag, DIAGNOSTICS[tag]) for tag in behind]
        yield Section(env, "", answers, tables.results(findings, env), pictures, more)
    yield Section("Speed", "Training only, evaluation excluded; means over finished runs.", table=tables.speed(study))
    if (lost := tables.failed_runs(findings)).rows:
        yield Section("Failed and unfinished runs", table=lost)
