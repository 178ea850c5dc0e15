"""How often the report's intervals cover; `python tests/test_coverage.py` prints MEASURED_COVERAGE."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reporting import write_group, write_report

from rl_runner.report import statistics
from rl_runner.report.statistics import MEASURED_COVERAGE, coverage

SEEDS = (3, 5, 10, 30)
REPLICATIONS = 5_000  # standard error of a coverage of 95 %: 0.3 %
FEW = 0.8416  # a fifth of normal scores lies further below the mean, in SD
Intervals = tuple[np.ndarray, np.ndarray]
Covers = tuple[float, float, float]  # percent of normal scores, of log-normal ones, and where the lowest fifth fails


def in_parts(interval: Callable[..., Intervals], *samples: np.ndarray) -> Intervals:
    """The interval of many replications, a part at a time to spare memory."""
    parts = [interval(*(sample[i : i + 250] for sample in samples)) for i in range(0, len(samples[0]), 250)]
    low, high = (np.concatenate(ends) for ends in zip(*parts, strict=True))
    return low, high


def mean(scores: np.ndarray) -> Intervals:
    return in_parts(lambda x: statistics.mean_interval(x, resamples=999), scores)


def difference(scores: np.ndarray, others: np.ndarray) -> Intervals:
    return in_parts(lambda x, y: statistics.difference_interval(x, y, resamples=999), scores, others)


def percent(interval: Intervals, truth: float) -> float:
    return 100 * float(np.mean((interval[0] <= truth) & (truth <= interval[1])))


def survivors(scores: np.ndarray) -> list[np.ndarray]:
    """The indices of replications that keep the same number of seeds, two or more, when the lowest fifth fails."""
    kept = (scores > -FEW).sum(axis=-1)
    return [np.flatnonzero(kept == n) for n in range(2, scores.shape[-1] + 1) if (kept == n).any()]


def failing(scores: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """Coverage of the mean and of the difference when the lowest fifth of the first group's normal scores fails."""
    hits, counted = np.zeros(2), 0
    for index in survivors(scores):
        left = np.sort(scores[index], axis=-1)[:, -int((scores[index[0]] > -FEW).sum()) :]
        found = percent(mean(left), 0), percent(difference(left, others[index]), 0)
        hits, counted = hits + len(index) * np.array(found), counted + len(index)
    return float(hits[0] / counted), float(hits[1] / counted)


def measured(n: int, replications: int = REPLICATIONS) -> tuple[Covers, Covers]:
    """The coverage of the mean's and the difference's interval in the three worlds of MEASURED_COVERAGE."""
    rng = np.random.default_rng(n)
    normal, other = rng.normal(size=(2, replications, n))
    skewed, truth = np.exp(rng.normal(size=(replications, n))), np.exp(0.5)
    sd = np.sqrt((np.e - 1) * np.e)
    lost = failing(rng.normal(size=(replications, n)), rng.normal(size=(replications, n)))
    return (
        (percent(mean(normal), 0), percent(mean(skewed), truth), lost[0]),
        (percent(difference(normal, 2 * other), 0), percent(difference(skewed, sd * other), truth), lost[1]),
    )


@pytest.fixture(scope="module")
def found() -> dict[int, tuple[Covers, Covers]]:
    return {n: measured(n) for n in SEEDS}


@pytest.mark.parametrize("n", SEEDS)
def test_normal_scores_are_covered(found: dict[int, tuple[Covers, Covers]], n: int):
    for normal, _, _ in found[n]:
        assert 94 <= normal <= 96


@pytest.mark.parametrize("n", SEEDS)
def test_the_footnotes_figures_are_measured_again(found: dict[int, tuple[Covers, Covers]], n: int):
    for covers, told in zip(found[n], MEASURED_COVERAGE[n], strict=True):
        assert np.allclose(covers, told, atol=0.051), "the table holds the same replications to one decimal"


def test_a_page_quotes_its_own_numbers_of_seeds(tmp_path: Path):
    write_group(tmp_path, [1.0, 2.0, 4.0, 5.0, 7.0])
    page = write_report([tmp_path], tmp_path / "report").read_text()
    (_, skewed, failing), (_, difference_skewed, difference_failing) = MEASURED_COVERAGE[5]
    assert "with 5 seeds" in page
    assert f"{skewed:.0f} and {difference_skewed:.0f} % of log-normal" in page
    assert f"{failing:.0f} and {difference_failing:.0f} % where a fifth fails." in page
    assert set(coverage([5, 3, 10])) == {3, 10}
    assert set(coverage([11])) == {10}, "the next smaller one that was measured"
    assert coverage([1, 1]) == {}, "there is no interval"


@pytest.mark.parametrize(("groups", "n"), [(3, 3), (3, 10), (6, 10)])
def test_all_pairs_of_many_groups_are_covered_at_once(groups: int, n: int):
    scores = np.random.default_rng(n).normal(size=(groups, 2000, n))
    held = np.ones(2000, bool)
    for x, y in itertools.combinations(scores, 2):
        low, high = statistics.difference_interval(x, y, groups)
        held &= (low <= 0) & (high >= 0)
    assert 0.94 <= held.mean() <= 0.97


if __name__ == "__main__":
    for seeds in (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 50):
        rows = [tuple(round(value, 1) for value in covers) for covers in measured(seeds)]
        print(f"    {seeds}: {tuple(rows)},", flush=True)
