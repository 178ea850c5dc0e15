"""The mean curve of a group with its interval band."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rl_runner.report.load import Array, Curve, Run
from rl_runner.report.statistics import mean_interval

POINTS = 200
BAND_RESAMPLES = 999


class Band(NamedTuple):
    """Mean over seeds and its pointwise 95 % interval; low and high are the mean itself with one seed."""

    steps: Array
    mean: Array
    low: Array
    high: Array


def group_band(runs: Sequence[Run], tag: str) -> Band | None:
    """The finished runs' mean, or that of all runs while none has finished, where all of them have points."""
    chosen = [run for run in runs if run.finished and tag in run.curves] or [run for run in runs if tag in run.curves]
    curves = [run.curves[tag] for run in chosen]
    if not curves:
        return None
    start, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[(steps >= start) & (steps <= end)]
    if not len(steps):
        return None
    grid = steps[thinned(len(steps))]
    values = np.stack([np.interp(grid, curve.steps, curve.values) for curve in curves], axis=-1)
    mean = values.mean(axis=-1)
    low, high = mean_interval(values, BAND_RESAMPLES) if len(curves) > 1 else (mean, mean)
    return Band(grid, mean, low, high)


def thin(curve: Curve) -> Curve:
    """At most POINTS points of a curve, its ends among them."""
    index = thinned(len(curve.steps))
    return Curve(curve.steps[index], curve.values[index])


def thinned(n: int) -> NDArray[np.int64]:
    """Indices of at most POINTS of n points, evenly spread, the ends among them."""
    return np.unique(np.linspace(0, n - 1, min(n, POINTS)).round().astype(int))
