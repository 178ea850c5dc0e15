"""One palette for the page and its figures: drawn in light colours, which the page turns into CSS variables."""

import html
import re
from typing import Any, NamedTuple

from rl_runner.report.study import Study


class Ink(NamedTuple):
    """A colour by day and by night."""

    name: str
    light: str
    dark: str


# Okabe and Ito's colours without yellow, and Tol's wine; their dark variants keep the hue.
GROUPS = [
    Ink("blue", "#0072b2", "#56aee6"),
    Ink("vermilion", "#d55e00", "#ff8a45"),
    Ink("green", "#009e73", "#33c99c"),
    Ink("purple", "#b8609a", "#e59cc6"),
    Ink("orange", "#d69200", "#f2b84b"),
    Ink("sky", "#3ba3d8", "#a3dcff"),
    Ink("wine", "#882255", "#d9709f"),
]
OTHER = Ink("other", "#a9b0b8", "#5f6872")
TEXT = Ink("text", "#1d2329", "#e8ebee")
MUTED = Ink("muted", "#646d76", "#9aa4ae")
GRID = Ink("grid", "#e6e9ec", "#2c333a")
PAPER = Ink("paper", "#fdfdfc", "#14181c")
INKS = [*GROUPS, OTHER, TEXT, MUTED, GRID, PAPER]

RC: dict[Any, Any] = {
    "font.size": 9.5,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "figure.facecolor": PAPER.light,
    "axes.facecolor": PAPER.light,
    "axes.edgecolor": GRID.light,
    "axes.labelcolor": MUTED.light,
    "axes.titlecolor": TEXT.light,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID.light,
    "grid.linewidth": 0.8,
    "xtick.color": GRID.light,
    "ytick.color": GRID.light,
    "xtick.labelcolor": MUTED.light,
    "ytick.labelcolor": MUTED.light,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
    "text.color": TEXT.light,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with a $ is no formula
}


def colours(study: Study) -> dict[str, Ink]:
    """A colour per group; beyond the palette only the groups with the best mean ranks have their own."""
    if len(study.groups) <= len(GROUPS):
        return dict(zip(study.groups, GROUPS, strict=False))
    ranks: dict[str, list[int]] = {group: [] for group in study.groups}
    for env in study.envs:
        scored = [group for group in study.groups_in(env) if len(study.scores(env, group))]
        for rank, group in enumerate(sorted(scored, key=lambda group: -study.scores(env, group).mean())):
            ranks[group].append(rank)
    best = sorted(study.groups, key=lambda group: sum(ranks[group]) / len(ranks[group]) if ranks[group] else 1e9)
    chosen = set(best[: len(GROUPS)])
    palette = iter(GROUPS)
    return {group: next(palette) if group in chosen else OTHER for group in study.groups}


def css_variables(dark: bool) -> str:
    """Declarations of every colour, `--blue: #0072b2;` and so on."""
    return " ".join(f"--{ink.name}: {ink.dark if dark else ink.light};" for ink in INKS)


def themed(svg: str, alt: str) -> str:
    """Matplotlib's SVG for a page: colours as variables, no repeated ids, no XML prologue, paths to two decimals."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _themed_tag(tag[0]), svg)  # and not the names between the tags
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def _themed_tag(tag: str) -> str:
    tag = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", tag)
    tag = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), tag)
    for ink in INKS:
        tag = tag.replace(ink.light, f"var(--{ink.name})")
    return tag
