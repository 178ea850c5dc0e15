"""Intervals that hold with few seeds, and aggregates over several environments.

Below 20 seeds Student t and Welch; from 20 on the percentile bootstrap, whose level is widened as Hesterberg
(2015, "What Teachers Should Know About the Bootstrap") proposes, so that it also covers 95 % and not 93 %.
With more than two groups, differences are Games-Howell's: simultaneous over all pairs, since which
group is best is read off the same scores. With two groups this is Welch's interval itself.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

from rl_runner.report.load import Array

LEVEL = 0.95
BOOTSTRAP_FROM = 20
RESAMPLES = 9_999


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


class Summary(NamedTuple):
    """What a list of seeds has shown; `sd` and `interval` need two seeds."""

    n: int
    mean: float
    sd: float | None
    lowest: float
    highest: float
    interval: Interval | None


class Normalisation(NamedTuple):
    """Scores of one environment that become 0 and 1."""

    zero: float
    one: float


def summarize(scores: Array) -> Summary:
    """Summary of final scores [n], n >= 1."""
    several = len(scores) > 1
    low, high = mean_interval(scores) if several else (np.nan, np.nan)
    interval = Interval(float(low), float(high)) if several else None
    sd = scores.std(ddof=1) if several else None
    return Summary(len(scores), scores.mean(), sd, scores.min(), scores.max(), interval)


def mean_interval(scores: Array, resamples: int = RESAMPLES) -> tuple[Array, Array]:
    """Interval of the mean of scores [..., n] over the last axis, n >= 2."""
    n = scores.shape[-1]
    quantile = critical(n - 1)
    if n < BOOTSTRAP_FROM:
        half = quantile * scores.std(axis=-1, ddof=1) / np.sqrt(n)
        return scores.mean(axis=-1) - half, scores.mean(axis=-1) + half
    return _bootstrap([scores], lambda x, axis: np.mean(x, axis=axis), _widened(quantile, n), resamples)


def difference_interval(better: Array, other: Array, groups: int = 2, resamples: int = RESAMPLES) -> Interval:
    """Interval of the difference of two means, simultaneous over all pairs of `groups` groups; n >= 2 each."""
    n = min(len(better), len(other))
    difference = better.mean() - other.mean()
    squares = np.array([scores.var(ddof=1) / len(scores) for scores in (better, other)])
    if not squares.any():
        return Interval(difference, difference)
    df = squares.sum() ** 2 / (squares**2 / [len(better) - 1, len(other) - 1]).sum()
    quantile = critical(df, groups)
    if n < BOOTSTRAP_FROM:
        half = quantile * np.sqrt(squares.sum())
        return Interval(difference - half, difference + half)

    def difference_of_means(x: Array, y: Array, axis: int) -> Array:
        return np.mean(x, axis=axis) - np.mean(y, axis=axis)

    low, high = _bootstrap([better, other], difference_of_means, _widened(quantile, n), resamples)
    return Interval(float(low), float(high))


def critical(df: float, groups: int = 2) -> float:
    """Two-sided quantile: Student t for two groups, the studentized range over the square root of 2 for more."""
    if groups == 2:
        return float(stats.t.ppf((1 + LEVEL) / 2, df))
    return _studentized_range(groups, float(np.format_float_positional(df, 2, fractional=False))) / np.sqrt(2)


@lru_cache
def _studentized_range(groups: int, df: float) -> float:
    """Takes a tenth of a second, hence the cache and df to two digits only."""
    return float(stats.studentized_range.ppf(LEVEL, groups, df))


def _widened(quantile: float, n: int) -> float:
    """The nominal level at which a percentile bootstrap of n values is as wide as the small-sample quantile asks."""
    return float(2 * stats.norm.cdf(quantile * np.sqrt(n / (n - 1))) - 1)


def _bootstrap(samples: Sequence[Array], statistic: object, level: float, resamples: int) -> tuple[Array, Array]:
    """Percentile interval, each sample resampled within itself along its last axis; always the same draws."""
    result = stats.bootstrap(
        samples, statistic, vectorized=True, axis=-1, confidence_level=level, n_resamples=resamples,
        batch=max(1, 4_000_000 // max(sample.size for sample in samples)), method="percentile",
        random_state=np.random.default_rng(0),
    )  # fmt: skip
    return result.confidence_interval.low, result.confidence_interval.high


def normalise(scores: Array, to: Normalisation) -> Array:
    """Scores with `zero` at 0 and `one` at 1; all of them 1 where the two coincide."""
    return (scores - to.zero) / (to.one - to.zero) if to.one != to.zero else np.ones_like(scores)


def iqm(per_env: Sequence[Array]) -> tuple[float, Interval | None]:
    """Interquartile mean over all seeds of all environments, seeds resampled within their environment."""

    def trimmed(*samples: Array, axis: int) -> Array:
        return stats.trim_mean(np.concatenate(samples, axis=-1), 0.25, axis=axis)

    return float(trimmed(*per_env, axis=-1)), _stratified(per_env, trimmed)


def probability_of_improvement(better: Sequence[Array], other: Sequence[Array]) -> tuple[float, Interval | None]:
    """Probability that a seed of the first beats one of the second, ties half, averaged over environments."""
    E = len(better)

    def probability(*samples: Array, axis: int) -> Array:
        wins = [
            np.mean(np.sign(x[..., :, None] - y[..., None, :]) / 2 + 0.5, axis=(-2, -1))
            for x, y in zip(samples[:E], samples[E:], strict=True)
        ]
        return np.mean(wins, axis=0)

    samples = [*better, *other]
    return float(probability(*samples, axis=-1)), _stratified(samples, probability)


def _stratified(samples: Sequence[Array], statistic: object) -> Interval | None:
    n = min(len(sample) for sample in samples)
    if n < 2:
        return None
    df = sum(len(sample) - 1 for sample in samples)
    low, high = _bootstrap(samples, statistic, _widened(critical(df), n), resamples=1_999)
    return Interval(float(low), float(high))


def performance_profile(per_env: Sequence[Array], thresholds: Array) -> Array:
    """Share of runs above each threshold [T], every environment with equal weight."""
    return np.mean([(scores[:, None] > thresholds).mean(axis=0) for scores in per_env], axis=0)
