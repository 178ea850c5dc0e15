"""From runs to conclusions, and from these to one page that needs nothing but itself, to figures, CSV and Markdown."""

import html
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from tqdm import tqdm

from rl_runner import __version__
from rl_runner.report import tables
from rl_runner.report.aggregate import Reference, aggregate
from rl_runner.report.load import SearchRecord, collect, plain
from rl_runner.report.plots import DIAGNOSTICS, GROUPS, INKS, MUTED, OTHER, TEXT, Picture, Studio, row_name
from rl_runner.report.sentences import IDLE, RETURNS, compare_all, enumerated, headline, missing_seeds, words_for
from rl_runner.report.statistics import coverage
from rl_runner.report.study import LOSSES, Study, shown, unnamed_differences
from rl_runner.report.tables import Table, markdown_escaped


def prose(text: str) -> Markup:
    """Escaped text with true minus signs, and intervals that no line breaks."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", html.escape(text, quote=False).strip())
    return Markup(re.sub(r"(?<=\d), (?=[−\d])", ",\u00a0", text.replace(" [", "\u00a0[")))


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=jinja2.select_autoescape(), trim_blocks=True,
    lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
TEMPLATES.filters |= {"prose": prose, "md": markdown_escaped}


class Section(NamedTuple):
    """A part of the page; `answers`: sentences, and whether they leave something open."""

    title: str
    text: str = ""
    answers: Sequence[tuple[str, bool]] = ()
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    more: Sequence[Picture] = ()


class Findings:
    """All that is concluded from the runs at or below the directories, before anything is drawn."""

    def __init__(self, directories: Sequence[Path], tag: str, reference: Reference):
        self.collection = collect(directories)
        self.study = Study(self.collection.runs, tag)
        self.reference = reference if words_for(tag) is RETURNS else Reference()  # which holds returns
        self.comparisons, self.published = compare_all(self.study, self.reference)
        self.aggregate = aggregate(self.study, self.reference)
        self.headline = headline(self.study, self.comparisons)

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
        parts = [f"{counts[loss]} {words}" for loss, words in LOSSES.items() if counts[loss]]
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
        found, cells, limit = [*self.comparisons[env], *self.published[env]], self.study.cells_in(env), 6
        answers = [(comparison.sentence(), not comparison.decided) for comparison in found]
        if idle := [cell.group for cell in cells if cell.never_updated]:
            answers.append((f"No verdict on {enumerated(idle, limit)}: {IDLE}.", True))
        if single := [cell.group for cell in self.study.single(env)]:
            answers.append((f"One seed makes no comparison: {enumerated(single, limit)}.", True))
        empty = [cell for cell in cells if not len(cell.scores) and len(cells) > 1]
        return answers + [(f"{cell.group} has no score: {cell.shortfall}.", True) for cell in empty]

    def markdown(self, picture: Path, beside: Path) -> str:
        """Headline, one table, every conclusion and the curves, as Markdown; links are relative to `beside`."""
        link = Path(os.path.relpath(picture, beside)).as_posix()
        table = tables.results_in_markdown(self.study, self.reference)
        return TEMPLATES.get_template("template.md").render(findings=self, table=table, link=link)


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
    page = TEMPLATES.get_template("template.html").render(
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


def _sections(findings: Findings, studio: Studio) -> Iterator[Section]:
    study, results = findings.study, findings.results
    for search in findings.collection.searches:
        pictures = [_history(search, studio)] if search.ranked else []
        pictures += [_importance(search, studio)] if search.importance else []
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
    yield Section("Speed", "Training only, evaluation excluded; means over finished runs.", table=tables.speed(study))
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


def _history(search: SearchRecord, studio: Studio) -> Picture:
    trials = sorted(search.ranked, key=lambda trial: trial.number)
    numbers, values = [trial.number for trial in trials], [trial.value or 0 for trial in trials]

    def draw(axes: Axes) -> None:
        axes.plot(numbers, values, "o", color=GROUPS[0].light, markersize=5)
        axes.step(numbers, np.maximum.accumulate(values), where="post", color=TEXT.light, linewidth=1.6)
        axes.set_xlabel("trial")

    return studio.picture(f"{search.name}_history", "Score of every finished trial, and the best so far", draw)


def _importance(search: SearchRecord, studio: Studio) -> Picture:
    shares = dict(sorted(search.importance.items(), key=lambda item: item[1]))

    def draw(axes: Axes) -> None:
        axes.barh(range(len(shares)), list(shares.values()), height=0.28, color=GROUPS[0].light)
        for row, label in enumerate(shown(shares).values()):
            row_name(axes, row + 0.2, label)
        axes.set(yticks=[], ylim=(-0.4, len(shares) - 0.2))
        axes.set_xlabel("share", color=MUTED.light)

    title = f"What being among the best of {len(search.ranked)} trials depends on"
    return studio.picture(f"{search.name}_importance", title, draw)
