"""Intervals that hold with few seeds, and aggregates over several environments.

Below 20 seeds Student t and Welch; from 20 on the percentile bootstrap, whose level is widened as Hesterberg
(2015, "What Teachers Should Know About the Bootstrap") proposes, so that it also covers 95 % and not 93 %.
With more than two groups, differences are Games-Howell's: simultaneous over all pairs, since which
group is best is read off the same scores. With two groups this is Welch's interval itself. Over several
environments, whose differences are counted, each has Šidák's level, so that all hold at once.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from rl_runner.report.load import Array

LEVEL = 0.95  # of every interval; the texts follow it, MEASURED_COVERAGE does not
PERCENT = f"{100 * LEVEL:g} %"
BOOTSTRAP_FROM = 20  # seeds; below, Student t and Welch
RESAMPLES = 9_999  # with which 2.5 % of all, the sample itself among them, is a whole number

# How often an interval of the mean, and one of the difference, covers the truth, in percent of 5 000 replications, by
# the number of seeds that were started; `python tests/test_coverage.py` measures it. Three worlds: normal scores;
# log-normal scores, the exponential of a standard normal (skewness 6.2); normal scores of which the lowest fifth fails
# and is missing, while the mean over all is meant. The difference is that from a second group of as many normal scores,
# which has twice the standard deviation in the first world and the same one in the others.
MEASURED_COVERAGE = {
    2: ((95.2, 90.0, 93.6), (96.9, 96.7, 97.2)),
    3: ((94.6, 84.6, 94.0), (95.5, 95.4, 95.5)),
    4: ((95.0, 83.5, 93.8), (95.2, 95.0, 94.9)),
    5: ((95.4, 81.8, 92.9), (95.1, 95.0, 94.5)),
    6: ((94.8, 82.5, 91.9), (95.0, 94.9, 93.0)),
    8: ((95.1, 83.7, 88.9), (95.0, 94.9, 90.6)),
    10: ((95.2, 84.4, 85.3), (95.9, 94.9, 89.9)),
    12: ((94.8, 85.1, 80.5), (95.2, 94.6, 87.4)),
    15: ((95.6, 86.2, 74.2), (95.3, 94.5, 85.3)),
    20: ((94.8, 87.1, 64.3), (94.7, 94.1, 80.5)),
    30: ((94.7, 88.8, 39.0), (94.9, 93.8, 69.9)),
    50: ((94.8, 89.9, 17.7), (94.8, 94.0, 55.3)),
}


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        """[low, high], each to the digits that the width justifies."""
        return f"[{number(self.low, self.half)}, {number(self.high, self.half)}]"


class Summary(NamedTuple):
    """What a list of seeds has shown; `sd` and `interval` need two seeds."""

    n: int
    mean: float
    sd: float | None
    lowest: float
    highest: float
    interval: Interval | None

    def rounded(self, value: float) -> str:
        """One of its numbers, to the digits that the interval justifies."""
        return number(value, self.interval.half if self.interval else 0)

    def __str__(self) -> str:
        """The mean with its interval."""
        return f"{self.rounded(self.mean)} {self.interval or ''}".strip()


def number(value: float, spread: float, sign: bool = False) -> str:
    """A number to the two digits that its spread (half an interval, an SD) justifies."""
    spread = spread or abs(value) / 10
    digits = max(0, min(6, 1 - math.floor(math.log10(spread)))) if spread > 0 else 0
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text if float(text) else "0"


def summarize(scores: Array) -> Summary:
    """Summary of final scores [n], n >= 1."""
    several = len(scores) > 1
    interval = Interval(*map(float, mean_interval(scores))) if several else None
    sd = float(scores.std(ddof=1)) if several else None
    return Summary(len(scores), float(scores.mean()), sd, float(scores.min()), float(scores.max()), interval)


def mean_interval(scores: Array, resamples: int = RESAMPLES) -> tuple[Array, Array]:
    """Interval of the mean of scores [..., n] over the last axis, n >= 2."""
    n = scores.shape[-1]
    quantile = critical(n - 1)
    if n < BOOTSTRAP_FROM:
        half = quantile * scores.std(axis=-1, ddof=1) / np.sqrt(n)
        return scores.mean(axis=-1) - half, scores.mean(axis=-1) + half
    return _bootstrap([scores], np.mean, _widened(quantile, n), resamples)


def difference_interval(
    better: Array, other: Array, groups: int = 2, environments: int = 1, resamples: int = RESAMPLES
) -> tuple[Array, Array]:
    """Interval of the difference of two means over the last axis [..., n >= 2].

    Simultaneous over all pairs of `groups` groups in each of `environments` environments.
    """
    sizes = np.array([better.shape[-1], other.shape[-1]])
    difference = better.mean(axis=-1) - other.mean(axis=-1)
    squares = np.stack([scores.var(axis=-1, ddof=1) for scores in (better, other)], axis=-1) / sizes
    total = squares.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = np.where(total > 0, total**2 / (squares**2 / (sizes - 1)).sum(axis=-1), 1)
    quantile = critical(df, groups, LEVEL ** (1 / environments))
    if sizes.min() < BOOTSTRAP_FROM:
        return difference - quantile * np.sqrt(total), difference + quantile * np.sqrt(total)
    level = _widened(quantile, sizes.min())
    return _bootstrap([better, other], lambda x, y, axis: x.mean(axis) - y.mean(axis), level, resamples)


def critical(df: float | Array, groups: int = 2, level: float = LEVEL) -> Array:
    """Two-sided quantile: Student t for two groups, the studentized range over the square root of 2 for more."""
    if groups == 2:
        return np.asarray(stats.t.ppf((1 + level) / 2, df))
    return np.asarray(np.vectorize(_studentized_range, otypes=[float])(df, groups, level) / np.sqrt(2))


def _studentized_range(df: float, groups: int, level: float) -> float:
    """Between its neighbours with df of two digits, on a chord that lies above the curve by less than a thousandth."""
    step = 10.0 ** (math.floor(math.log10(df)) - 1)
    low, high = (round(math.floor(df / step + 1e-9) * step + more, 9) for more in (0, step))
    share = (1 / low - 1 / df) / (1 / low - 1 / high)
    return math.exp((1 - share) * _log_range(low, groups, level) + share * _log_range(high, groups, level))


@lru_cache(1024)
def _log_range(df: float, groups: int, level: float) -> float:
    """Takes a tenth of a second, hence the cache and df of two digits."""
    return math.log(stats.studentized_range.ppf(level, groups, df))


def _widened(quantile: Array, n: int) -> Array:
    """The nominal level at which a percentile bootstrap of n values is as wide as the small-sample quantile asks."""
    return np.asarray(2 * stats.norm.cdf(quantile * np.sqrt(n / (n - 1))) - 1)


def _bootstrap(samples: Sequence[Array], statistic: Any, level: Array, resamples: int) -> tuple[Array, Array]:
    """Percentile interval [...] at a level [...]; samples [..., n] resampled within themselves, by the same draws."""
    rng = np.random.default_rng(0)
    drawn = [sample[..., rng.integers(0, sample.shape[-1], (resamples, sample.shape[-1]))] for sample in samples]
    values = np.sort(statistic(*drawn, axis=-1), axis=-1)
    return _sorted_quantile(values, (1 - level) / 2), _sorted_quantile(values, (1 + level) / 2)


def _sorted_quantile(values: Array, share: Array) -> Array:
    """Linearly interpolated quantiles [...] of sorted values [..., n]."""
    place = np.broadcast_to(share, values.shape[:-1])[..., None] * (values.shape[-1] - 1)
    below = np.floor(place).astype(int)
    low, high = (np.take_along_axis(values, np.minimum(i, values.shape[-1] - 1), -1) for i in (below, below + 1))
    return np.asarray((low + (place - below) * (high - low))[..., 0])


def iqm(per_env: Sequence[Array]) -> tuple[float, Interval]:
    """Interquartile mean over all seeds (two or more) of all environments, resampled within their environment."""

    def trimmed(*samples: Array, axis: int) -> Array:
        return np.asarray(stats.trim_mean(np.concatenate(samples, axis=-1), 0.25, axis=axis))

    return float(trimmed(*per_env, axis=-1)), _stratified(per_env, trimmed)


def probability_of_improvement(
    better: Sequence[Array], other: Sequence[Array], groups: int = 2
) -> tuple[float, Interval]:
    """Probability that a seed of the first beats one of the second, ties half, averaged over environments.

    Simultaneous over all pairs of `groups` groups.
    """
    E = len(better)

    def probability(*samples: Array, axis: int) -> Array:
        return np.asarray(np.mean(list(map(share_of_wins, samples[:E], samples[E:])), axis=0))

    samples = [*better, *other]
    return float(probability(*samples, axis=-1)), _stratified(samples, probability, groups)


def share_of_wins(better: Array, other: Array) -> Array:
    """How often [...] one of the first [..., n] is larger than one of the second [..., m], ties half."""
    return np.asarray(np.mean(np.sign(better[..., :, None] - other[..., None, :]) / 2 + 0.5, axis=(-2, -1)))


def _stratified(samples: Sequence[Array], statistic: Any, groups: int = 2) -> Interval:
    n = min(len(sample) for sample in samples)
    df = sum(len(sample) - 1 for sample in samples)
    ends = _bootstrap(samples, statistic, _widened(critical(df, groups), n), resamples=1_999)
    return Interval(*map(float, ends))


def performance_profile(per_env: Sequence[Array], thresholds: Array) -> Array:
    """Share of runs above each threshold [T], every environment with equal weight."""
    return np.asarray(np.mean([(scores[:, None] > thresholds).mean(axis=0) for scores in per_env], axis=0))


def coverage(seeds: Iterable[int]) -> dict[int, tuple[tuple[float, float, float], tuple[float, float, float]]]:
    """What was measured for the fewest and the most seeds that a group has; nothing if none has two."""
    several = sorted({max(known for known in MEASURED_COVERAGE if known <= n) for n in seeds if n > 1})
    return {n: MEASURED_COVERAGE[n] for n in several[:1] + several[-1:]}
