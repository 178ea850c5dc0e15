"""The report as one HTML page that needs nothing but itself."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from rl_runner import __version__
from rl_runner.report.plots import Picture
from rl_runner.report.sentences import Comparison
from rl_runner.report.style import OTHER, Ink, css_variables
from rl_runner.report.table import Table, prose

SENTENCES = 6
MOST_OPEN = 12  # rows of a table that is unfolded
METHOD = """
A score is a finished run's final evaluation, or, of a quantity that is not evaluated then, its mean over the last
tenth of the run's steps (its last value where nothing was logged then). Failed and unfinished runs have none, so a
group's mean speaks of its finished seeds only. Intervals cover 95 %: Student t below 20 seeds, beyond it the percentile
bootstrap, widened for the small sample. Differences are Welch's below 20 seeds, bootstrapped from 20 on. With more
than two groups they hold for all pairs at once (Games-Howell; with six groups of two or three seeds for 92 to 93 %),
because which group is best is read off the same scores; with several environments for all of them at once (Šidák),
because wins are counted. Intervals presume seeds that scatter about normally: what they cover otherwise stands at the
foot of the page. “Better” (“higher” of what is no return) means that the interval of the difference excludes 0; one
seed makes no comparison, and what never updated gets no verdict. Curves show the mean over finished seeds with its
pointwise interval, from three seeds on; thin lines are seeds, dashed ones did not finish. Over several environments the
probability of improvement, which holds for all pairs of groups at once, compares scores within each and needs no
scale; the IQM is that of scores from random play (0) to a published score (1). Both resample seeds within their
environment.
"""


@dataclass(frozen=True)
class Section:
    """A heading with its sentences, pictures and tables, in this order; then what unfolds."""

    title: str
    comparisons: Sequence[Comparison] = ()
    aside: Sequence[str] = ()
    text: str = ""
    pictures: Sequence[Picture] = ()
    table: Table | None = None
    more_title: str = ""
    more: Sequence[Picture] = ()

    def html(self, anchor: str) -> str:
        parts = [f"<h2>{html.escape(self.title)}</h2>"]
        parts += [f"<p>{prose(self.text)}</p>"] if self.text else []
        parts += [_answers(self.comparisons, self.aside)] if self.comparisons or self.aside else []
        parts += [self.table.html()] if self.table else []
        parts += [_figures(self.pictures)] if self.pictures else []
        parts += [f"<h3>{html.escape(self.more_title)}</h3>{_figures(self.more)}"] if self.more else []
        return f'<section id="{anchor}">{"".join(parts)}</section>'


@dataclass(frozen=True)
class Page:
    """Everything the page says."""

    title: str
    headline: str
    facts: str
    warning: str
    differing: str
    footnote: str
    inks: dict[str, Ink]
    sections: Sequence[Section]
    folded: dict[str, Table]

    def html(self) -> str:
        template = Template(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
        sections = "".join(section.html(f"section-{i}") for i, section in enumerate(self.sections))
        return template.substitute(
            title=html.escape(self.title),
            light=css_variables(dark=False),
            dark=css_variables(dark=True),
            headline=prose(self.headline),
            facts=prose(self.facts),
            warning=f'<p class="warning">{prose(self.warning)}</p>' if self.warning else "",
            differing=f'<p class="facts">{prose(self.differing)}</p>' if self.differing else "",
            footnote=f"<p>{prose(self.footnote)}</p>" if self.footnote else "",
            legend=_legend(self.inks),
            navigation=_navigation(self.sections) if len(self.sections) > 4 else "",
            sections=sections + self._details(),
            footer=f"Made by rl_runner {__version__}. Figures (PNG) and tables (CSV) lie beside this page.",
        )

    def _details(self) -> str:
        folded = "".join(
            f'<details class="long"{" open" if len(table.rows) <= MOST_OPEN else ""}>'
            f"<summary>{html.escape(name)}</summary>{table.html()}</details>"
            for name, table in self.folded.items()
        )
        how = f'<details><summary>How to read this</summary><p class="notes">{prose(METHOD)}</p></details>'
        return f'<section id="details"><h2>Details</h2>{folded}{how}</section>'


def _answers(comparisons: Sequence[Comparison], aside: Sequence[str]) -> str:
    items = [f"<li{'' if c.decided else ' class=open'}>{prose(c.sentence())}</li>" for c in comparisons]
    items += [f"<li class=open>{prose(sentence)}</li>" for sentence in aside]
    shown, folded = (items, []) if len(items) <= SENTENCES else (items[:SENTENCES], items[SENTENCES:])
    rest = f"<details><summary>{len(folded)} more</summary>{_list(folded)}</details>" if folded else ""
    return _list(shown) + rest


def _list(items: Sequence[str]) -> str:
    return f'<ul class="answers">{"".join(items)}</ul>'


def _figures(pictures: Sequence[Picture]) -> str:
    figures = (f"<figure><figcaption>{html.escape(p.title)}</figcaption>{p.svg}</figure>" for p in pictures)
    return f'<div class="figures">{"".join(figures)}</div>'


def _legend(inks: dict[str, Ink]) -> str:
    if len(inks) < 2:
        return ""
    shown = {group: ink for group, ink in inks.items() if ink != OTHER}
    if len(shown) < len(inks):
        shown[f"{len(inks) - len(shown)} other groups"] = OTHER
    items = (f'<li><i style="background: var(--{ink.name})"></i>{html.escape(g)}</li>' for g, ink in shown.items())
    return f'<ul class="legend">{"".join(items)}</ul>'


def _navigation(sections: Sequence[Section]) -> str:
    links = (f'<a href="#section-{i}">{html.escape(section.title)}</a>' for i, section in enumerate(sections))
    return f"<nav>{''.join(links)}</nav>"
