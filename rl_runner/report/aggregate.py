"""One answer over several environments, on normalised scores."""

from dataclasses import dataclass

import numpy as np

from rl_runner.report.grouping import Study
from rl_runner.report.load import Array
from rl_runner.report.reference import Reference
from rl_runner.report.statistics import (
    Interval,
    Normalisation,
    iqm,
    normalise,
    performance_profile,
    probability_of_improvement,
)

Estimate = tuple[float, Interval | None]


@dataclass(frozen=True)
class Aggregate:
    """Groups ordered by IQM; `improvement` is the probability that the best one beats the group."""

    envs: list[str]
    scale: str
    iqm: dict[str, Estimate]
    improvement: dict[str, Estimate]
    thresholds: Array
    profiles: dict[str, Array]

    @property
    def best(self) -> str:
        return next(iter(self.iqm))


def aggregate(study: Study, reference: Reference) -> Aggregate | None:
    """Aggregate over the environments in which every group has finished a run; None if there are not two."""
    envs = [env for env in study.envs if all(len(study.scores(env, group)) for group in study.groups)]
    if len(envs) < 2 or len(study.groups) < 2:
        return None
    published = all(reference.anchor(env) for env in envs)
    ends = f"the file's random and {reference.one}" if published else "lowest and highest final score shown"
    scores = {group: [_normalised(study, reference, env, group, published) for env in envs] for group in study.groups}
    estimates = {group: iqm(values) for group, values in scores.items()}
    ranked = dict(sorted(estimates.items(), key=lambda item: -item[1][0]))
    best = next(iter(ranked))
    improvement = {group: probability_of_improvement(scores[best], scores[group]) for group in ranked if group != best}
    everything = np.concatenate([values for group in scores.values() for values in group])
    thresholds = np.linspace(min(0, everything.min()), max(1, everything.max()), 201)
    profiles = {group: performance_profile(scores[group], thresholds) for group in study.groups}
    return Aggregate(envs, f"0 and 1 = {ends}", ranked, improvement, thresholds, profiles)


def _normalised(study: Study, reference: Reference, env: str, group: str, published: bool) -> Array:
    shown = np.concatenate([study.scores(env, other) for other in study.groups_in(env)])
    anchor = reference.anchor(env) if published else None
    return normalise(study.scores(env, group), anchor or Normalisation(shown.min(), shown.max()))
