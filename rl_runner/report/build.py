"""From directories to a report: collect, group, conclude, draw, write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rl_runner.report import tables
from rl_runner.report.aggregate import Aggregate, aggregate
from rl_runner.report.exports import write_csvs
from rl_runner.report.grouping import Study, build, differing_settings
from rl_runner.report.load import Collection, collect
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
    words_for,
)
from rl_runner.report.style import colours


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
    def facts(self) -> str:
        study = self.study
        counts = {"run": len(study.runs), "group": len(study.groups), "environment": len(study.envs)}
        facts = [f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in counts.items()]
        seeds = sorted({len(study.scores(*cell)) for cell in study.cells})
        spread = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])
        facts.append(f"{spread} finished seed{'' if seeds[-1] == 1 else 's'} per group")
        return " · ".join([*facts, f"score: {study.tag} of the final evaluation"])

    @property
    def warning(self) -> str:
        runs = self.study.runs
        failed = sum(run.status == "failed" for run in runs) + len(self.collection.unreadable)
        pruned = sum(run.status == "pruned" for run in runs)
        unfinished = sum(not run.finished and run.status not in ("failed", "pruned") for run in runs)
        parts = [f"{failed} failed"] if failed else []
        parts += [f"{pruned} {'was' if pruned == 1 else 'were'} stopped early by a search"] if pruned else []
        parts += [f"{unfinished} did not finish yet"] if unfinished else []
        losses = (
            f"Of {len(runs) + len(self.collection.unreadable)} runs, {enumerated(parts, limit=3)}." if parts else ""
        )
        n = len(self.study.repeated)
        repeats = f"{n} repeated run{'' if n == 1 else 's'} of a seed left out: the last one counts." if n else ""
        return f"{losses} {repeats}".strip()

    def sentences(self) -> dict[str, list[str]]:
        """Every conclusion in words, per environment."""
        found = {env: [*self.comparisons[env], *self.published[env]] for env in self.study.envs}
        return {env: [comparison.sentence() for comparison in comparisons] for env, comparisons in found.items()}


def find(directories: Sequence[Path], tag: str, reference: Reference) -> Findings:
    """Read the runs and draw the conclusions."""
    collection = collect(directories)
    study = build(collection.runs, tag)
    if words_for(tag) is not RETURNS:
        reference = Reference()  # which holds returns
    comparisons = {env: comparisons_in(study, env) for env in study.envs}
    published = {env: _against_published(study, env, reference) for env in study.envs}
    over_all = aggregate(study, reference)
    return Findings(collection, study, reference, comparisons, published, over_all, searches_in(directories))


def _against_published(study: Study, env: str, reference: Reference) -> list[Comparison]:
    """The best group against every method published at the same number of steps."""
    published = reference.at(env, tables.budget(study, env))
    scores = {group: study.scores(env, group) for group in study.groups_in(env)}
    scored = [group for group in scores if len(scores[group])]
    if not published or not scored:
        return []
    best = max(scored, key=lambda group: scores[group].mean())
    return compare(best, scores | published, list(published), words_for(study.tag), len(scored) + len(published))


def write(findings: Findings, out: Path, title: str) -> Path:
    """Write index.html, the PNGs and the CSVs; returns the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    study = findings.study
    studio = Studio(study, colours(study), findings.reference, out)
    results, folded = tables.results(study, findings.reference), _folded(study)
    sections = _sections(findings, studio, results)
    page = Page(title, findings.headline, findings.facts, findings.warning, studio.inks, sections, folded)
    (out / "index.html").write_text(page.html())
    named = {
        "results": tables.by_environment(results),
        "differences": tables.differences(findings.comparisons),
        "speed": tables.speed(study),
    }
    write_csvs(study, named | folded, out)
    studio.overview()
    return out / "index.html"


def _folded(study: Study) -> dict[str, tables.Table]:
    differing = differing_settings(study)
    found = {"Settings that differ": tables.settings(differing, study.groups)} if differing else {}
    return found | {"All runs": tables.every_run(study)}


def _sections(findings: Findings, studio: Studio, results: dict[str, tables.Table]) -> list[Section]:
    study = findings.study
    sections = [search.section(studio) for search in findings.searches]
    sections += _across(findings.aggregate, studio) if findings.aggregate else []
    sections += [_environment(findings, studio, env, results[env]) for env in progress(study.envs, "Drawing")]
    note = "Training only, evaluation excluded; means over finished runs."
    sections.append(Section("Speed", text=note, table=tables.speed(study)))
    lost = tables.casualties(study, findings.collection)
    return [*sections, Section("Failed and unfinished runs", table=lost)] if lost.rows else sections


def _environment(findings: Findings, studio: Studio, env: str, table: tables.Table) -> Section:
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
    return Section(env, unsaid, pictures=pictures, table=table, more_title="Behind the scores", more=more)


def _title(tag: str) -> str:
    return "Learning curve" if words_for(tag) is RETURNS else DIAGNOSTICS.get(tag, tag)


def _diagnostics(studio: Studio, env: str) -> list[Picture]:
    study = studio.study
    present = {tag for group in study.groups_in(env) for run in study.cells[env, group] for tag in run.curves}
    chosen = {tag: title for tag, title in DIAGNOSTICS.items() if tag in present and tag != study.tag}
    return [studio.curves(env, tag, title) for tag, title in chosen.items()]


def _across(aggregate: Aggregate, studio: Studio) -> list[Section]:
    text = f"Over {', '.join(aggregate.envs)}; {aggregate.scale}."
    pictures = [studio.iqm(aggregate), studio.profiles(aggregate)]
    table = tables.across(aggregate, studio.study.tag)
    return [Section("Across environments", text=text, table=table, pictures=pictures)]
