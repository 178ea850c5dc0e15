"""Colours by day and by night, and what figures look like."""

import html
import re
from typing import Any, NamedTuple


class Ink(NamedTuple):
    """A colour by day and by night."""

    name: str
    light: str
    dark: str


# Okabe and Ito's colours without yellow, and Tol's wine; their dark variants keep the hue.
GROUPS = [
    Ink("blue", "#0072b2", "#56aee6"), Ink("vermilion", "#d55e00", "#ff8a45"), Ink("green", "#009e73", "#33c99c"),
    Ink("purple", "#b8609a", "#e59cc6"), Ink("orange", "#d69200", "#f2b84b"), Ink("sky", "#3ba3d8", "#a3dcff"),
    Ink("wine", "#882255", "#d9709f"),
]  # fmt: skip
OTHER = Ink("other", "#a9b0b8", "#5f6872")
TEXT, MUTED = Ink("text", "#1d2329", "#e8ebee"), Ink("muted", "#646d76", "#9aa4ae")
GRID, PAPER = Ink("grid", "#e6e9ec", "#2c333a"), Ink("paper", "#fdfdfc", "#14181c")
INKS = [*GROUPS, OTHER, TEXT, MUTED, GRID, PAPER]
RC: dict[Any, Any] = {
    **dict.fromkeys(["figure.facecolor", "axes.facecolor"], PAPER.light),
    **dict.fromkeys(["axes.edgecolor", "grid.color", "xtick.color", "ytick.color"], GRID.light),
    **dict.fromkeys(["axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"], MUTED.light),
    **dict.fromkeys(["axes.titlecolor", "text.color"], TEXT.light),
    **dict.fromkeys(["axes.spines.top", "axes.spines.right", "axes.spines.left", "legend.frameon"], False),
    **dict.fromkeys(["axes.grid", "axes.axisbelow"], True),
    **dict.fromkeys(["lines.solid_capstyle", "lines.solid_joinstyle"], "round"),
    "font.size": 9.5, "font.family": "sans-serif", "svg.fonttype": "none", "grid.linewidth": 0.8, "ytick.major.size": 0,
    "text.parse_math": False,  # a name with a $ is no formula
}  # fmt: skip


def themed(svg: str, alt: str) -> str:
    """Matplotlib's SVG for a page: colours as variables, no repeated ids, no XML prologue, paths to two decimals."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", _themed_tag, svg)  # and not the names between the tags
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def _themed_tag(found: re.Match[str]) -> str:
    tag = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", found[0])
    tag = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), tag)
    for ink in INKS:
        tag = tag.replace(ink.light, f"var(--{ink.name})")
    return tag
