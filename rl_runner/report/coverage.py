"""How often a 95 % interval covers the truth, as measured; `python tests/test_coverage.py` measures it.

Three worlds, each of n seeds that were started: normal scores; log-normal scores, the exponential of a standard normal
(skewness 6.2); normal scores of which the lowest fifth fails and is missing, while the mean over all is meant. An
interval of a mean, and one of the difference from a second group of as many normal scores, which has twice the standard
deviation in the normal world and the same one in the others.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Covers(NamedTuple):
    """Percent of the intervals that cover, in each of the three worlds."""

    normal: float
    skewed: float
    failing: float


# Seeds: (mean, difference). 5 000 replications each, so that the standard error is 0.3 at 95 % and 0.5 at 84 %.
MEASURED: dict[int, tuple[Covers, Covers]] = {
    2: (Covers(95.2, 90.0, 93.6), Covers(96.9, 96.7, 97.2)),
    3: (Covers(94.6, 84.6, 94.0), Covers(95.5, 95.4, 95.5)),
    4: (Covers(95.0, 83.5, 93.8), Covers(95.2, 95.0, 94.9)),
    5: (Covers(95.4, 81.8, 92.9), Covers(95.1, 95.0, 94.5)),
    6: (Covers(94.8, 82.5, 91.9), Covers(95.0, 94.9, 93.0)),
    8: (Covers(95.1, 83.7, 88.9), Covers(95.0, 94.9, 90.6)),
    10: (Covers(95.2, 84.4, 85.3), Covers(95.9, 94.9, 89.9)),
    12: (Covers(94.8, 85.1, 80.5), Covers(95.2, 94.6, 87.4)),
    15: (Covers(95.6, 86.2, 74.2), Covers(95.3, 94.5, 85.3)),
    20: (Covers(94.8, 87.1, 64.3), Covers(94.7, 94.1, 80.5)),
    30: (Covers(94.7, 88.8, 39.0), Covers(94.9, 93.8, 69.9)),
    50: (Covers(94.8, 89.9, 17.7), Covers(94.8, 94.0, 55.3)),
}


def footnote(seeds: Iterable[int]) -> str:
    """The coverage of a page whose groups have so many seeds each."""
    several = sorted({max(known for known in MEASURED if known <= n) for n in seeds if n > 1})
    if not several:
        return ""
    told = [_told(n) for n in sorted({several[0], several[-1]})]
    return (
        f"What a 95 % interval of a mean, and of a difference of two groups, covers, as measured: {'; '.join(told)}. "
        "Log-normal: the exponential of a standard normal. Failing: the lowest fifth of one group's normal scores is "
        "missing, and the mean of all is meant. The other group scores normally; where it scatters less than the "
        "first one, a difference covers as little as a mean."
    )


def _told(n: int) -> str:
    words = ("of normal scores", "of log-normal ones", "where a fifth fails")
    worlds = zip(words, *MEASURED[n], strict=True)
    shares = [f"{mean:.0f} and {difference:.0f} % {word}" for word, mean, difference in worlds]
    return f"with {n} seeds {', '.join(shares)}"
