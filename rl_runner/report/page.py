"""From runs to conclusions, and from these to one page that needs nothing but itself, to figures, CSV and Markdown."""

import html
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup
from tqdm import tqdm

from rl_runner import __version__
from rl_runner.report import tables
from rl_runner.report.aggregate import Aggregate, Reference, aggregate
from rl_runner.report.load import Collection, SearchRecord, collect, plain
from rl_runner.report.plots import DIAGNOSTICS, INKS, OTHER, Picture, Studio
from rl_runner.report.sentences import (
    RETURNS,
    Comparisons,
    compare_all,
    enumerated,
    headline,
    missing_seeds,
    not_compared,
    words_for,
)
from rl_runner.report.statistics import coverage
from rl_runner.report.study import Study, study_of, unnamed_differences
from rl_runner.report.tables import Table, markdown_escaped

LOSSES_IN_WORDS = {
    "failed": "failed", "stopped early": "stopped early by a search", "unfinished": "did not finish yet",
    "without a score": "finished without a score",
}  # fmt: skip


class Section(NamedTuple):
    """A part of the page; `answers`: sentences, and whether they leave something open."""

    title: str
    text: str = ""
    answers: Sequence[tuple[str, bool]] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    more: Sequence[Picture] = ()


@dataclass(frozen=True)
class Findings:
    """All that is concluded from a set of runs, before anything is drawn."""

    collection: Collection
    study: Study
    reference: Reference
    comparisons: Comparisons
    published: Comparisons
    aggregate: Aggregate | None

    @property
    def headline(self) -> str:
        return headline(self.study, self.comparisons)

    @property
    def results(self) -> dict[str, Table]:
        """The table of every environment."""
        study = self.study
        return {env: tables.results(study, env, self.reference, self.comparisons) for env in study.envs}

    @property
    def facts(self) -> str:
        study = self.study
        counts = {"run": len(study.runs), "group": len(study.groups), "environment": len(study.envs)}
        facts = [f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in counts.items()]
        seeds = sorted({len(cell.scores) for cell in study.cells.values()})
        spread = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        facts.append(f"{spread} finished seed{'' if seeds[-1] == 1 else 's'} per group")
        return " · ".join([*facts, f"score: {study.score_words}"])

    @property
    def warning(self) -> str:
        """How many runs have no score, and how many were left out."""
        unreadable, repeated = len(self.collection.unreadable), len(self.study.repeated)
        counts = sum((cell.losses for cell in self.study.cells.values()), Counter())
        parts = [f"{counts[loss]} {words}" for loss, words in LOSSES_IN_WORDS.items() if counts[loss]]
        parts += [f"{unreadable} cannot be read"] if unreadable else []
        losses = f"Of {len(self.study.runs) + unreadable} runs, {enumerated(parts, limit=5)}." if parts else ""
        runs = f"{repeated} repeated run{'' if repeated == 1 else 's'}"
        return f"{losses} {f'{runs} of a seed left out: the last one counts.' if repeated else ''}".strip()

    @property
    def differing(self) -> str:
        """What differs between the groups beside what their names say."""
        keys = unnamed_differences(self.study)
        return f"The groups differ in {enumerated(keys, limit=8)}, too: see Settings that differ." if keys else ""

    def answers(self, env: str) -> list[tuple[str, bool]]:
        """Every conclusion of an environment in words, and of what there is none; each with whether it is open."""
        found = [*self.comparisons[env], *self.published[env]]
        answers = [(comparison.sentence(), not comparison.decided) for comparison in found]
        return answers + [(sentence, True) for sentence in not_compared(self.study, env)]

    def markdown(self, picture: Path, beside: Path) -> str:
        """Headline, one table, every conclusion and the curves, as Markdown; links are relative to `beside`."""
        link = Path(os.path.relpath(picture, beside)).as_posix()
        facts, warning = markdown_escaped(self.facts), markdown_escaped(self.warning)
        table = tables.results_in_markdown(self.study, self.reference)
        parts = [f"**{markdown_escaped(self.headline)}**", f"{facts}.", table.markdown()]
        parts += [warning] if warning else []
        for env in self.study.envs:
            listed = [f"- {markdown_escaped(sentence)}" for sentence, _ in self.answers(env)]
            parts += ["\n".join([f"{markdown_escaped(env)}:\n", *listed])] if listed else []
        tag = markdown_escaped(self.study.tag)
        parts.append(f"![{tag} over training: mean, 95 % interval, every seed]({link})")
        return "\n\n".join(parts) + "\n"


def find(directories: Sequence[Path], tag: str, reference: Reference) -> Findings:
    """Read the runs and draw the conclusions."""
    collection = collect(directories)
    study = study_of(collection.runs, tag)
    if words_for(tag) is not RETURNS:
        reference = Reference()  # which holds returns
    return Findings(collection, study, reference, *compare_all(study, reference), aggregate(study, reference))


def write(findings: Findings, out: Path, title: str) -> Path:
    """Write index.html, the PNGs and the CSVs; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    study = findings.study
    studio = Studio(study, findings.reference, out)
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
    legend = {group: ink for group, ink in studio.inks.items() if ink != OTHER}
    if len(legend) < len(study.groups):
        legend[f"{len(study.groups) - len(legend)} other groups"] = OTHER
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    templates = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters["prose"] = prose
    page = templates.get_template("template.html").render(
        findings=findings, title=plain(title), inks=INKS, legend=legend, sections=sections, folded=folded,
        coverage=coverage(len(cell.runs) for cell in study.cells.values()), version=__version__,
    )  # fmt: skip
    (out / "index.html").write_text(page, encoding="utf-8")
    named = {
        "results": tables.results_in_full(study, findings.reference),
        "differences": tables.differences(findings.comparisons),
        "speed": tables.speed(study),
        "curves": tables.curves(study),
    }
    for name, table in (named | folded).items():
        table.write_csv(out / f"{name.lower().replace(' ', '_')}.csv")
    return out / "index.html"


def prose(text: str) -> Markup:
    """Escaped text with true minus signs, and intervals that no line breaks."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", html.escape(text, quote=False).strip())
    return Markup(re.sub(r"(?<=\d), (?=[−\d])", ",\u00a0", text.replace(" [", "\u00a0[")))


def _sections(findings: Findings, studio: Studio) -> Iterator[Section]:
    study, results = findings.study, findings.results
    for search in findings.collection.searches:
        pictures = [studio.trials(search)] if search.ranked else []
        pictures += [studio.importance(search)] if search.importance else []
        yield Section(f"Search {search.name}", search_text(search), (), tables.search_trials(search), pictures)
    if over := findings.aggregate:
        missing = missing_seeds((cell for cell in study.cells.values() if cell.env in over.envs), with_env=True)
        text = f"Over {', '.join(over.envs)}{missing}. {over.scale(study.envs)}"
        pictures = [studio.iqm(over), studio.profiles(over)] if over.anchored else []
        yield Section("Across environments", text, (), tables.across(over, study.tag), pictures)
    for env in tqdm(study.envs, "Drawing", leave=False, disable=None):
        answers = [answer for answer in findings.answers(env) if answer[0] not in findings.headline]
        cells = study.cells_in(env)
        present = {tag for cell in cells for run in cell.runs for tag in run.curves}
        title = "Learning curve" if words_for(study.tag) is RETURNS else DIAGNOSTICS.get(study.tag, study.tag)
        pictures = [studio.curves(env, study.tag, title)] if study.tag in present else []
        pictures += [studio.final_scores(env)] if any(len(cell.scores) for cell in cells) else []
        behind = [tag for tag in DIAGNOSTICS if tag in present and tag != study.tag]
        more = [studio.curves(env, tag, DIAGNOSTICS[tag]) for tag in behind]
        yield Section(env, "", answers, results[env], pictures, more)
    note = "Training only, evaluation excluded; means over finished runs."
    yield Section("Speed", note, table=tables.speed(study))
    lost = tables.failed_runs(study, findings.collection)
    if lost.rows:
        yield Section("Failed and unfinished runs", table=lost)


def search_text(search: SearchRecord) -> str:
    """What a search has found in a sentence."""
    states = Counter(trial.state for trial in search.trials)
    words = {"complete": "finished", "pruned": "were stopped early", "fail": "failed"}
    counts = ", ".join(f"{states[state]} {word}" for state, word in words.items() if state in states)
    if not search.ranked:
        return f"{counts}; none has finished yet."
    best = search.ranked[0]
    values = ", ".join(f"{plain(key)}={tables.parameter(value)}" for key, value in best.params.items())
    return (
        f"{counts}. The best is trial {best.number} with {best.value:.4g}: {values}. "
        "The best of many trials flatters itself: run it again with new seeds before comparing it."
    )
