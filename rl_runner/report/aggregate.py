"""One answer over several environments: who beats whom, which needs no scale; normalised scores, which do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rl_runner.report.load import Array
from rl_runner.report.reference import Reference
from rl_runner.report.statistics import (
    Interval,
    iqm,
    normalise,
    performance_profile,
    probability_of_improvement,
)
from rl_runner.report.study import Study

Estimate = tuple[float, Interval]


@dataclass(frozen=True)
class Aggregate:
    """`improvement`: the probability that the best group beats another; `iqm` and `profiles` over `anchored`.

    The best has the highest IQM, or, without a scale, most often the higher score.
    """

    envs: list[str]
    anchored: list[str]
    one: str
    best: str
    improvement: dict[str, Estimate]
    iqm: dict[str, Estimate]
    thresholds: Array
    profiles: dict[str, Array]

    @property
    def ranked(self) -> list[str]:
        """The groups, the best first."""
        return list(self.iqm) or [self.best, *self.improvement]

    @property
    def clear(self) -> bool:
        """Whether the best one can be told from every other."""
        return all(interval.low > 0.5 for _, interval in self.improvement.values())

    def scale(self, envs: Sequence[str]) -> str:
        """Which of `envs` are left out, and what counts as 0 and 1."""
        out = [env for env in envs if env not in self.envs]
        left = f"Without {', '.join(out)}, where not every group has two scores. " if out else ""
        if not self.anchored:
            return f"{left}No IQM: it needs scores from elsewhere that count as 0 and 1, see --reference."
        part = f", over {', '.join(self.anchored)} alone" if self.anchored != self.envs else ""
        return f"{left}IQM{part}: 0 and 1 = the file's random and {self.one}."


def aggregate(study: Study, reference: Reference) -> Aggregate | None:
    """Aggregate over the environments in which every group that has learned has two scores; None if under two."""
    idle = {group for env, group in study.cells if study.never_updated(env, group)}
    groups = [group for group in study.groups if group not in idle]
    envs = [env for env in study.envs if all(len(study.scores(env, group)) > 1 for group in groups)]
    if len(envs) < 2 or len(groups) < 2:
        return None
    scores = {group: [study.scores(env, group) for env in envs] for group in groups}
    anchors = {env: anchor for env in envs if (anchor := reference.anchor(env))}
    anchored = list(anchors) if len(anchors) > 1 else []
    normalised = {
        group: [normalise(study.scores(env, group), anchors[env]) for env in anchored] for group in groups if anchored
    }
    estimates = {group: iqm(values) for group, values in normalised.items()}
    ranked = dict(sorted(estimates.items(), key=lambda item: -item[1][0]))
    best = next(iter(ranked), None) or max(groups, key=lambda group: _wins(scores, group))
    against = {
        group: probability_of_improvement(scores[best], scores[group], len(groups)) for group in groups if group != best
    }
    improvement = dict(sorted(against.items(), key=lambda item: item[1][0]))
    everything = np.concatenate([values for group in normalised.values() for values in group] or [np.zeros(1)])
    thresholds = np.linspace(min(0, everything.min()), max(1, everything.max()), 201)
    profiles = {group: performance_profile(values, thresholds) for group, values in normalised.items()}
    return Aggregate(envs, anchored, reference.one, best, improvement, ranked, thresholds, profiles)


def _wins(scores: dict[str, list[Array]], group: str) -> float:
    """How often a seed of the group has the higher score than one of another."""
    return float(np.mean([
        np.mean(np.sign(x[:, None] - y[None, :]))
        for other in scores if other != group for x, y in zip(scores[group], scores[other], strict=True)
    ]))  # fmt: skip
