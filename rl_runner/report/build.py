"""From directories to a report: collect, group, conclude, draw, write."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_runner.report import tables
from rl_runner.report.aggregate import Aggregate, aggregate
from rl_runner.report.coverage import footnote
from rl_runner.report.exports import write_csvs
from rl_runner.report.grouping import build, differing_settings, unnamed_differences
from rl_runner.report.load import Collection, collect
from rl_runner.report.names import plain
from rl_runner.report.page import Page, Section
from rl_runner.report.plots import DIAGNOSTICS, Picture, Studio
from rl_runner.report.progress import progress
from rl_runner.report.reference import Reference
from rl_runner.report.search import Search, searches_in
from rl_runner.report.sentences import (
    RETURNS,
    Comparison,
    compare,
    comparisons_in,
    enumerated,
    headline,
    missing_seeds,
    not_compared,
    words_for,
)
from rl_runner.report.study import Study
from rl_runner.report.style import colours
from rl_runner.report.table import Table


@dataclass(frozen=True)
class Findings:
    """All that is concluded from a set of runs, before anything is drawn."""

    collection: Collection
    study: Study
    reference: Reference
    comparisons: dict[str, list[Comparison]]
    published: dict[str, list[Comparison]]
    aggregate: Aggregate | None
    searches: Sequence[Search]

    @property
    def headline(self) -> str:
        return headline(self.study, self.comparisons)

    @property
    def results(self) -> dict[str, Table]:
        return tables.results(self.study, self.reference, self.comparisons)

    @property
    def facts(self) -> str:
        study = self.study
        counts = {"run": len(study.runs), "group": len(study.groups), "environment": len(study.envs)}
        facts = [f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in counts.items()]
        seeds = sorted({len(study.scores(*cell)) for cell in study.cells})
        spread = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        facts.append(f"{spread} finished seed{'' if seeds[-1] == 1 else 's'} per group")
        return " · ".join([*facts, f"score: {study.score_words}"])

    @property
    def warning(self) -> str:
        runs = self.study.runs
        unreadable = len(self.collection.unreadable)
        counts = sum((self.study.losses(*cell) for cell in self.study.cells), Counter())
        words = {
            "failed": "failed", "stopped early": "stopped early by a search", "unfinished": "did not finish yet",
            "without a score": "finished without a score",
        }  # fmt: skip
        parts = [f"{counts[loss]} {said}" for loss, said in words.items() if counts[loss]]
        parts += [f"{unreadable} cannot be read"] if unreadable else []
        losses = f"Of {len(runs) + unreadable} runs, {enumerated(parts, limit=5)}." if parts else ""
        n = len(self.study.repeated)
        repeats = f"{n} repeated run{'' if n == 1 else 's'} of a seed left out: the last one counts." if n else ""
        return f"{losses} {repeats}".strip()

    @property
    def differing(self) -> str:
        """What differs between the groups beside what their names say."""
        keys = unnamed_differences(self.study)
        return f"The groups differ in {enumerated(keys, limit=8)}, too: see Settings that differ." if keys else ""

    @property
    def footnote(self) -> str:
        return footnote(len(cell) for cell in self.study.cells.values())

    def sentences(self) -> dict[str, list[str]]:
        """Every conclusion in words, per environment, and of what there is none."""
        found = {env: [*self.comparisons[env], *self.published[env]] for env in self.study.envs}
        return {
            env: [*(comparison.sentence() for comparison in comparisons), *not_compared(self.study, env)]
            for env, comparisons in found.items()
        }


def find(directories: Sequence[Path], tag: str, reference: Reference) -> Findings:
    """Read the runs and draw the conclusions."""
    collection = collect(directories)
    study = build(collection.runs, tag)
    if words_for(tag) is not RETURNS:
        reference = Reference()  # which holds returns
    contested = sum(len(study.comparable(env)) > 1 for env in study.envs)
    comparisons = {env: comparisons_in(study, env, max(1, contested)) for env in study.envs}
    published = _against_published(study, reference)
    over_all = aggregate(study, reference)
    return Findings(collection, study, reference, comparisons, published, over_all, searches_in(directories))


def _against_published(study: Study, reference: Reference) -> dict[str, list[Comparison]]:
    """Per environment, the best group against every method published at the same number of steps."""
    published = {}
    for env in study.envs:
        known = {
            name: scores for name, scores in reference.at(env, tables.budget(study, env)).items() if len(scores) > 1
        }
        if known and study.comparable(env):
            published[env] = known
    found: dict[str, list[Comparison]] = {env: [] for env in study.envs}
    for env, known in published.items():
        ours = study.comparable(env)
        lost = {ours[0]: study.shortfall(env, ours[0])}
        scores, number = {ours[0]: study.scores(env, ours[0])} | known, len(ours) + len(known)
        found[env] = compare(ours[0], scores, list(known), words_for(study.tag), number, len(published), lost)
    return found


def write(findings: Findings, out: Path, title: str) -> Path:
    """Write index.html, the PNGs and the CSVs; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    study = findings.study
    studio = Studio(study, colours(study), findings.reference, out)
    folded = _folded(study)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the PNGs' font has not; the page's has
        sections = _sections(findings, studio)
        studio.overview()
    page = Page(
        plain(title), findings.headline, findings.facts, findings.warning, findings.differing, findings.footnote,
        studio.inks, sections, folded,
    )  # fmt: skip
    (out / "index.html").write_text(page.html(), encoding="utf-8")
    named = {
        "results": tables.numbers(study, findings.reference),
        "differences": tables.differences(findings.comparisons),
        "speed": tables.speed(study),
    }
    write_csvs(study, named | folded, out)
    return out / "index.html"


def _folded(study: Study) -> dict[str, Table]:
    differing = differing_settings(study)
    found = {"Settings that differ": tables.settings(differing, study.groups)} if differing else {}
    full = Table(["shown as", "in full"], [list(names) for names in study.cut.items()], names=2)
    found |= {"Names in full": full} if full.rows else {}
    made = tables.commands(study.runs)
    found |= {"Commands": made} if made.rows else {}
    return found | {"All runs": tables.every_run(study)}


def _sections(findings: Findings, studio: Studio) -> list[Section]:
    study, results = findings.study, findings.results
    sections = [search.section(studio) for search in findings.searches]
    sections += _across(findings.aggregate, studio) if findings.aggregate else []
    sections += [_environment(findings, studio, env, results[env]) for env in progress(study.envs, "Drawing")]
    note = "Training only, evaluation excluded; means over finished runs."
    speed = tables.rounded(tables.speed(study), {"steps per second": 0, "updates": 0, "wall seconds": 1})
    sections.append(Section("Speed", text=note, table=speed))
    lost = tables.casualties(study, findings.collection)
    return [*sections, Section("Failed and unfinished runs", table=lost)] if lost.rows else sections


def _environment(findings: Findings, studio: Studio, env: str, table: Table) -> Section:
    study = findings.study
    runs = [run for group in study.groups_in(env) for run in study.cells[env, group]]
    pictures = (
        [studio.curves(env, study.tag, _title(study.tag))] if any(study.tag in run.curves for run in runs) else []
    )
    if any(len(study.scores(env, group)) for group in study.groups_in(env)):
        pictures.append(studio.final_scores(env))
    found = [*findings.comparisons[env], *findings.published[env]]
    unsaid = [comparison for comparison in found if comparison.sentence() not in findings.headline]
    more = _diagnostics(studio, env)
    aside = not_compared(study, env)
    return Section(env, unsaid, aside, pictures=pictures, table=table, more_title="Behind the scores", more=more)


def _title(tag: str) -> str:
    return "Learning curve" if words_for(tag) is RETURNS else DIAGNOSTICS.get(tag, tag)


def _diagnostics(studio: Studio, env: str) -> list[Picture]:
    study = studio.study
    present = {tag for group in study.groups_in(env) for run in study.cells[env, group] for tag in run.curves}
    chosen = {tag: title for tag, title in DIAGNOSTICS.items() if tag in present and tag != study.tag}
    return [studio.curves(env, tag, title) for tag, title in chosen.items()]


def _across(aggregate: Aggregate, studio: Studio) -> list[Section]:
    study = studio.study
    lost = {f"{group} on {env}": study.shortfall(env, group) for env, group in study.cells if env in aggregate.envs}
    text = f"Over {', '.join(aggregate.envs)}{missing_seeds(lost)}. {aggregate.scale(study.envs)}"
    pictures = [studio.iqm(aggregate), studio.profiles(aggregate)] if aggregate.anchored else []
    table = tables.across(aggregate, studio.study.tag)
    return [Section("Across environments", text=text, table=table, pictures=pictures)]
