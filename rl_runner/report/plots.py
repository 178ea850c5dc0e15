"""The figures and their colours: each is drawn once in light ones, kept as SVG in those of the page, and as PNG."""

import html
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import cycle, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from rl_runner.report.aggregate import Aggregate
from rl_runner.report.findings import Findings
from rl_runner.report.load import Array, SearchRecord, file_name
from rl_runner.report.statistics import PERCENT, Interval, mean_interval
from rl_runner.report.study import Cell, shown, thinned

LOGARITHMIC = {"losses/td_loss"}  # without a band, which would reach below 0
WIDTH, HEIGHT = 4.9, 3.1
Draw = Callable[[Axes], None]
Estimates = Mapping[str, tuple[float, Interval | None]]
DASHES: list[Any] = ["--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]


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


class Picture(NamedTuple):
    """A figure on the page."""

    title: str
    svg: str


class Studio:
    """Draws figures of one study into a directory."""

    def __init__(self, findings: Findings, out: Path):
        self.findings, self.study, self.out = findings, findings.study, out

    @cached_property
    def inks(self) -> dict[str, Ink]:
        """A colour per group; beyond the palette only the groups with the best mean ranks have their own."""
        ranks: dict[str, list[float]] = {group: [] for group in self.study.groups}
        for rank, cell in (pair for env in self.study.envs for pair in enumerate(self.findings.ranked(env))):
            if cell.runs and len(cell.scores):
                ranks[cell.group].append(rank)
        best = sorted(ranks, key=lambda group: np.mean(ranks[group] or [np.inf]))[: len(GROUPS)]
        palette = iter(GROUPS)
        return {group: next(palette) if group in best else OTHER for group in ranks}

    def legend(self, groups: Sequence[str]) -> dict[str, Ink]:
        """A colour for every coloured group, and one for the others together."""
        inks = {group: self.inks[group] for group in groups if self._coloured(group)}
        others = len(groups) - len(inks)
        return inks | ({f"{others} others": OTHER} if others else {})

    def curves(self, env: str, tag: str, title: str) -> Picture:
        """Each group's mean curve with its seeds."""
        alt = f"{title} on {env} against environment steps: each group's mean with its seeds."
        groups = [cell.group for cell in self.study.cells_in(env)]
        legend = self._legend(groups, [env] if tag == self.study.tag else [])
        return self.picture(f"{env}_{tag}", title, lambda axes: self._curves(axes, env, tag), legend, alt)

    def final_scores(self, env: str) -> Picture:
        """Every seed of every group."""
        cells = {cell.group: cell for cell in self.study.cells_in(env) if len(cell.scores)}
        estimates = {group: (cell.summary.mean, cell.summary.interval) for group, cell in cells.items()}
        title = "Final evaluation, every seed" if self.study.final else "End of training, every seed"
        alt = f"{title} on {env}: seeds as dots, the mean with its {PERCENT} interval."
        return self._rows(f"{env}_final", title, estimates, cells, alt)

    def iqm(self, aggregate: Aggregate) -> Picture:
        """The groups' interquartile means."""
        alt = f"Interquartile mean of normalised scores over {len(aggregate.anchored)} environments."
        return self._rows("iqm", "IQM of normalised scores", aggregate.iqm, {}, alt)

    def profiles(self, aggregate: Aggregate) -> Picture:
        """The share of runs above each score."""

        def draw(axes: Axes) -> None:
            for group in sorted(aggregate.profiles, key=self._coloured):
                axes.plot(aggregate.thresholds, aggregate.profiles[group], color=self.inks[group].light, linewidth=2)
            axes.set(xlabel="normalised score τ", ylim=(-0.02, 1.02))

        title, alt = "Performance profile: share of runs above τ", "Share of runs above a normalised score, per group."
        return self.picture("profiles", title, draw, self._legend(list(aggregate.profiles)), alt)

    def search(self, search: SearchRecord) -> Iterator[Picture]:
        """A search's scores in the order of its trials, and what they depend on."""
        trials = sorted(search.ranked, key=lambda trial: trial.number)
        numbers, values = [trial.number for trial in trials], [trial.value or 0 for trial in trials]
        shares = dict(sorted(search.importance.items(), key=lambda item: item[1]))

        def draw_history(axes: Axes) -> None:
            axes.plot(numbers, values, "o", color=GROUPS[0].light, markersize=5)
            axes.step(numbers, np.maximum.accumulate(values), where="post", color=TEXT.light, linewidth=1.6)
            axes.set_xlabel("trial")

        def draw_importance(axes: Axes) -> None:
            axes.barh(range(len(shares)), list(shares.values()), height=0.28, color=GROUPS[0].light)
            for row, label in enumerate(shown(shares).values()):
                row_name(axes, row + 0.2, label)
            axes.set(yticks=[], ylim=(-0.4, len(shares) - 0.2))
            axes.set_xlabel("share", color=MUTED.light)

        if trials:
            title = "Score of every finished trial, and the best so far"
            yield self.picture(f"{search.name}_history", title, draw_history)
        if shares:
            title = f"What being among the best of {len(trials)} trials depends on"
            yield self.picture(f"{search.name}_importance", title, draw_importance)

    def overview(self) -> None:
        """All learning curves in curves.png, for a README or a slide."""
        envs = self.study.envs
        columns = min(3, len(envs))
        rows = -(-len(envs) // columns)
        with matplotlib.rc_context(RC):
            figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
            grid = figure.subplots(rows, columns, squeeze=False).ravel()
            for axes, env in zip_longest(grid, envs):
                axes.set_visible(env is not None)
                if env is not None:
                    self._curves(axes, env, self.study.tag)
                    axes.set_title(env, loc="left", fontweight="bold")
            _add_legend(figure, self._legend(self.study.groups, envs), 3 * columns)
            figure.savefig(self.out / "curves.png", dpi=150, bbox_inches="tight")

    def picture(
        self, name: str, title: str, draw: Draw, legend: Sequence[Line2D] = (), alt: str = "", height: float = HEIGHT
    ) -> Picture:
        """A figure with one pair of axes, which `draw` fills."""
        with matplotlib.rc_context(RC | {"svg.hashsalt": name}):
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            axes = figure.subplots()
            draw(axes)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            axes.set_title(title, loc="left", fontweight="bold")
            _add_legend(figure, legend, 3)
            figure.savefig(self.out / f"{file_name(name)}.png", dpi=150, bbox_inches="tight")
        return Picture(title, themed(buffer.getvalue(), alt or title))

    def _curves(self, axes: Axes, env: str, tag: str) -> None:
        cells = sorted(self.study.cells_in(env), key=lambda cell: self._coloured(cell.group))
        for layer, cell in enumerate(cells):
            self._cell_curve(axes, cell, tag, zorder=2 + layer / len(cells))
        if tag == self.study.tag:
            self._published_curves(axes, env)
        if tag == "eval/q_bias":
            axes.axhline(0, color=MUTED.light, linewidth=1)
        _fit_to_lines(axes, tag in LOGARITHMIC)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("environment steps")
        axes.margins(x=0.01)

    def _cell_curve(self, axes: Axes, cell: Cell, tag: str, zorder: float) -> None:
        colour, coloured = self.inks[cell.group].light, self._coloured(cell.group)
        for run in cell.runs if coloured and len(cell.runs) > 1 else ():
            if tag in run.curves:
                style = "-" if run.finished else (0, (2, 2))
                axes.plot(*thinned(*run.curves[tag]), color=colour, linewidth=0.7, alpha=0.35, linestyle=style)
        if (band := cell.band(tag)) is None:
            return
        steps, mean, low, high = band
        if coloured and tag not in LOGARITHMIC and len(cell.runs) > 2:
            alpha = 0.16 if len(self.study.groups) <= 4 else 0.08
            axes.fill_between(steps, low, high, color=colour, alpha=alpha, linewidth=0)
        axes.plot(steps, mean, color=colour, linewidth=2.2, marker="o" if len(steps) == 1 else None, zorder=zorder)

    def _published(self, env: str) -> Iterable[tuple[tuple[str, dict[int, Array]], Any]]:
        """The published methods with their curves, each with dashes of its own."""
        return zip(self.findings.reference.curves(env).items(), cycle(DASHES), strict=False)

    def _published_curves(self, axes: Axes, env: str) -> None:
        for (method, curve), dashes in self._published(env):
            steps = sorted(step for step in curve if step <= self.study.budget(env))
            if not steps:
                continue
            mean = [curve[step].mean() for step in steps]
            several = all(len(curve[step]) > 1 for step in steps)
            ends = np.abs(np.array([mean_interval(curve[step]) for step in steps]).T - mean) if several else None
            axes.errorbar(
                steps, mean, yerr=ends, color=TEXT.light, linestyle=dashes, linewidth=1.4, marker="o", markersize=3.5,
                capsize=2, elinewidth=1, zorder=4,
            )  # fmt: skip
            end, above = (steps[-1], mean[-1]), (-5, 4)
            label = axes.annotate(method, end, above, textcoords="offset points", ha="right", fontsize=8.5)
            label.set(color=TEXT.light, in_layout=False)

    def _coloured(self, group: str) -> bool:
        return self.inks[group] != OTHER

    def _legend(self, groups: Sequence[str], envs: Sequence[str] = ()) -> list[Line2D]:
        """A line for every coloured group, one for the others, and one for every method published for `envs`."""
        styles: dict[str, Any] = {label: (ink.light, "-", 2.2) for label, ink in self.legend(groups).items()}
        for method, dashes in ((method, dashes) for env in envs for (method, _), dashes in self._published(env)):
            styles[f"{method} (published)"] = TEXT.light, dashes, 1.4
        return [
            Line2D([], [], color=colour, linestyle=style, linewidth=width, label=label)
            for label, (colour, style, width) in styles.items()
        ]

    def _rows(self, name: str, title: str, estimates: Estimates, cells: Mapping[str, Cell], alt: str) -> Picture:
        """One row per group, the lowest first: the estimate with its interval, the cell's seeds as dots, the name."""

        def draw(axes: Axes) -> None:
            for row, group in enumerate(sorted(estimates, key=lambda group: estimates[group][0])):
                (value, interval), colour, name = estimates[group], self.inks[group].light, group
                if group in cells:
                    seeds, lost = cells[group].scores, cells[group].shortfall
                    axes.plot(seeds, [row - 0.2] * len(seeds), "o", color=colour, alpha=0.5, markersize=5, mew=0)
                    name = f"{group} ({lost})" if lost else group
                if interval:
                    axes.plot(interval, [row, row], color=colour, linewidth=2.6)
                axes.plot([value], [row], "D", color=colour, markersize=8, mec=PAPER.light, mew=1.5)
                row_name(axes, row + 0.17, name)
            axes.set(yticks=[], ylim=(-0.6, len(estimates) - 0.2))

        return self.picture(name, title, draw, alt=alt, height=max(HEIGHT, 0.7 + 0.5 * len(estimates)))


def row_name(axes: Axes, height: float, name: str) -> None:
    """Write a name across a row, smaller if it is long; it may not push the axes aside."""
    label = axes.text(0.0, height, name, transform=axes.get_yaxis_transform(), va="bottom", color=TEXT.light)
    label.set(in_layout=False, fontsize=9.5 * min(1, 56 / len(name)))


def _fit_to_lines(axes: Axes, logarithmic: bool) -> None:
    """Let the curves fill the picture: with two seeds an interval can be thirteen times as wide as they scatter."""
    heights = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()] or [np.zeros(1)])
    low, high = heights.min(), heights.max()
    if logarithmic and 0 < 100 * low < high:
        axes.set(yscale="log", ylim=(low / 1.5, high * 1.5))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
        axes.set_ylim(low - margin, high + margin)


def _add_legend(figure: Figure, lines: Sequence[Line2D], columns: int) -> None:
    if lines:
        longest = max(len(str(line.get_label())) for line in lines)
        columns = min(columns, len(lines), max(1, columns * 24 // (longest + 6)))
        figure.set_figheight(figure.get_figheight() + 0.23 * max(0, -(-len(lines) // columns) - 2))
        figure.legend(handles=list(lines), loc="outside lower center", ncols=columns)


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
