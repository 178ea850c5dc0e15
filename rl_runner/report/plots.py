"""The figures: each drawn once, kept as themed SVG for the page and as PNG beside it."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from rl_runner.report.aggregate import Aggregate
from rl_runner.report.curves import group_band, thin
from rl_runner.report.load import Array
from rl_runner.report.names import file_name
from rl_runner.report.reference import Reference
from rl_runner.report.statistics import Interval, mean_interval, summarize
from rl_runner.report.study import Study
from rl_runner.report.style import MUTED, OTHER, PAPER, RC, TEXT, Ink, themed
from rl_runner.report.tables import budget

DIAGNOSTICS = {
    "eval/exact_return": "Exact value of the greedy policy",
    "values/q_error_max": "Largest error of Q",
    "eval/q_bias": "Q bias: estimate minus return",
    "values/q_mean": "Mean Q",
    "losses/td_loss": "TD loss",
    "policy/entropy": "Policy entropy",
    "policy/alpha": "Temperature α",
}
LOGARITHMIC = {"losses/td_loss"}  # without a band, which would reach below 0
WIDTH, HEIGHT = 4.9, 3.1
DASHES: list[Any] = ["--", ":", "-.", (0, (5, 1, 1, 1, 1, 1))]


@dataclass(frozen=True)
class Picture:
    """A figure on the page."""

    title: str
    svg: str


@dataclass(frozen=True)
class Studio:
    """Draws figures of one study in its colours into a directory."""

    study: Study
    inks: dict[str, Ink]
    reference: Reference
    out: Path

    def curves(self, env: str, tag: str, title: str) -> Picture:
        alt = f"{title} on {env} against environment steps: each group's mean with its seeds."
        legend = [*self._legend(self.study.groups_in(env)), *self._published_legend(env, tag)]
        return self.picture(f"{env}_{tag}", title, alt, lambda axes: self._curves(axes, env, tag), legend)

    def final_scores(self, env: str) -> Picture:
        groups = [group for group in self.study.groups_in(env) if len(self.study.scores(env, group))]
        samples = {group: self.study.scores(env, group) for group in groups}
        intervals = {group: (float(x.mean()), summarize(x).interval) for group, x in samples.items()}
        title = "Final evaluation, every seed" if self.study.final else "End of training, every seed"
        alt = f"{title} on {env}: seeds as dots, the mean with its 95 % interval."
        lost = {group: self.study.shortfall(env, group) for group in groups}
        return self.picture(
            f"{env}_final", title, alt,
            lambda axes: _rows(axes, intervals, self.inks, samples, lost), [], _height(groups),
        )  # fmt: skip

    def iqm(self, aggregate: Aggregate) -> Picture:
        alt = f"Interquartile mean of normalised scores over {len(aggregate.anchored)} environments."
        title = "IQM of normalised scores"
        groups = list(aggregate.iqm)
        return self.picture(
            "iqm", title, alt, lambda axes: _rows(axes, dict(aggregate.iqm), self.inks, {}, {}), [], _height(groups)
        )

    def profiles(self, aggregate: Aggregate) -> Picture:
        def draw(axes: Axes) -> None:
            for group in self._back_to_front(list(aggregate.profiles)):
                axes.plot(aggregate.thresholds, aggregate.profiles[group], color=self.inks[group].light, linewidth=2)
            axes.set(xlabel="normalised score τ", ylim=(-0.02, 1.02))

        title = "Performance profile: share of runs above τ"
        legend = self._legend(list(aggregate.profiles))
        return self.picture("profiles", title, "Share of runs above a normalised score, per group.", draw, legend)

    def overview(self) -> Path:
        """All learning curves in one PNG, for a README or a slide."""
        envs = self.study.envs
        columns = min(3, len(envs))
        rows = -(-len(envs) // columns)
        with matplotlib.rc_context(RC):
            figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
            grid = figure.subplots(rows, columns, squeeze=False).ravel()
            for axes, env in zip(grid, envs, strict=False):
                self._curves(axes, env, self.study.tag)
                axes.set_title(env, loc="left", fontweight="bold")
            for unused in grid[len(envs) :]:
                unused.set_visible(False)
            published = {line.get_label(): line for env in envs for line in self._published_legend(env, self.study.tag)}
            _add_legend(figure, [*self._legend(self.study.groups), *published.values()], 3 * columns)
            figure.savefig(self.out / "curves.png", dpi=150, bbox_inches="tight")
        return self.out / "curves.png"

    def picture(
        self, name: str, title: str, alt: str, draw: Callable[[Axes], None], legend: Sequence[Line2D],
        height: float = HEIGHT,
    ) -> Picture:  # fmt: skip
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
        return Picture(title, themed(buffer.getvalue(), alt))

    def _curves(self, axes: Axes, env: str, tag: str) -> None:
        groups = self._back_to_front(self.study.groups_in(env))
        for layer, group in enumerate(groups):
            self._group_curve(axes, env, group, tag, zorder=2 + layer / len(groups))
        if tag == self.study.tag:
            self._published_curves(axes, env)
        if tag == "eval/q_bias":
            axes.axhline(0, color=MUTED.light, linewidth=1)
        _fit_to_lines(axes, tag in LOGARITHMIC)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("environment steps")
        axes.margins(x=0.01)

    def _group_curve(self, axes: Axes, env: str, group: str, tag: str, zorder: float) -> None:
        colour, cell = self.inks[group].light, self.study.cells[env, group]
        if self.inks[group] != OTHER and len(cell) > 1:
            for run in cell:
                if tag in run.curves:
                    style = "-" if run.finished else (0, (2, 2))
                    axes.plot(*thin(run.curves[tag]), color=colour, linewidth=0.7, alpha=0.35, linestyle=style)
        band = group_band(cell, tag)
        if band is None:
            return
        if self.inks[group] != OTHER and tag not in LOGARITHMIC and len(cell) > 2:
            alpha = 0.16 if len(self.study.groups) <= 4 else 0.08
            axes.fill_between(band.steps, band.low, band.high, color=colour, alpha=alpha, linewidth=0)
        mark = "o" if len(band.steps) == 1 else None
        axes.plot(band.steps, band.mean, color=colour, linewidth=2.2, marker=mark, zorder=zorder)

    def _published_curves(self, axes: Axes, env: str) -> None:
        last = budget(self.study, env)
        for method, dashes in zip(self.reference.methods(env), cycle(DASHES), strict=False):
            curve = {step: scores for step, scores in self.reference.curve(env, method).items() if step <= last}
            if not curve:
                continue
            steps = sorted(curve)
            mean = [curve[step].mean() for step in steps]
            several = all(len(curve[step]) > 1 for step in steps)
            bounds = np.array([mean_interval(curve[step], 999) for step in steps]).T - mean if several else None
            axes.errorbar(
                steps, mean, yerr=bounds if bounds is None else np.abs(bounds), color=TEXT.light, linestyle=dashes,
                linewidth=1.4, marker="o", markersize=3.5, capsize=2, elinewidth=1, zorder=4,
            )  # fmt: skip
            end, above = (steps[-1], mean[-1]), (-5, 4)
            label = axes.annotate(method, end, above, textcoords="offset points", ha="right", fontsize=8.5)
            label.set(color=TEXT.light, in_layout=False)

    def _published_legend(self, env: str, tag: str) -> list[Line2D]:
        methods = self.reference.methods(env) if tag == self.study.tag else []
        return [
            Line2D([], [], color=TEXT.light, linestyle=dashes, linewidth=1.4, label=f"{method} (published)")
            for method, dashes in zip(methods, cycle(DASHES), strict=False)
        ]

    def _back_to_front(self, groups: Sequence[str]) -> list[str]:
        return sorted(groups, key=lambda group: self.inks[group] != OTHER)

    def _legend(self, groups: Sequence[str]) -> list[Line2D]:
        coloured = [group for group in groups if self.inks[group] != OTHER]
        lines = [Line2D([], [], color=self.inks[group].light, linewidth=2.2, label=group) for group in coloured]
        others = [Line2D([], [], color=OTHER.light, linewidth=2.2, label=f"{len(groups) - len(coloured)} others")]
        return lines + (others if len(coloured) < len(groups) else [])


def _height(groups: Sequence[str]) -> float:
    return max(HEIGHT, 0.7 + 0.5 * len(groups))


def _rows(
    axes: Axes, estimates: dict[str, tuple[float, Interval | None]], inks: dict[str, Ink],
    samples: dict[str, Array], lost: dict[str, str],
) -> None:  # fmt: skip
    """One row per group: its seeds as dots, its estimate with the interval; the name stands above the row."""
    ordered = sorted(estimates, key=lambda group: estimates[group][0])
    for row, group in enumerate(ordered):
        value, interval = estimates[group]
        colour = inks[group].light
        if group in samples:
            seeds = samples[group]
            axes.plot(seeds, np.full(len(seeds), row - 0.2), "o", color=colour, alpha=0.5, markersize=5, mew=0)
        if interval:
            axes.plot(interval, [row, row], color=colour, linewidth=2.6)
        axes.plot([value], [row], "D", color=colour, markersize=8, markeredgecolor=PAPER.light, markeredgewidth=1.5)
        name = f"{group} ({lost[group]})" if lost.get(group) else group
        row_name(axes, row + 0.17, name)
    axes.set_yticks([])
    axes.set_ylim(-0.6, len(ordered) - 0.2)


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
        fitting = max(1, columns * 24 // (longest + 6))
        columns = min(columns, len(lines), fitting)
        figure.set_figheight(figure.get_figheight() + 0.23 * max(0, -(-len(lines) // columns) - 2))
        figure.legend(handles=list(lines), loc="outside lower center", ncols=columns)
