"""Published scores, and one answer over several environments: who beats whom, and normalised scores."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from rl_runner.errors import UserError
from rl_runner.report import statistics
from rl_runner.report.load import Array
from rl_runner.report.statistics import Interval
from rl_runner.report.study import Cell, Study, shown

Estimate = tuple[float, Interval]


@dataclass(frozen=True)
class Reference:
    """Published scores by environment without version, method and step; what counts as 0 and 1 where it is known."""

    scores: dict[str, dict[str, dict[int, Array]]] = field(default_factory=dict)
    anchors: dict[str, tuple[float, float]] = field(default_factory=dict)
    one: str = "best"  # the name in the file of the scores that count as 1

    def curves(self, env: str) -> dict[str, dict[int, Array]]:
        """By method and step."""
        return self.scores.get(without_version(env), {})

    def cells(self, study: Study, env: str) -> list[Cell]:
        """The scores of every method that was evaluated at exactly the last step of an environment's runs."""
        step = study.budget(env)
        curves = self.curves(env).items()
        return [Cell(env, f"{method} (published)", [], by[step], Counter()) for method, by in curves if step in by]


def read_reference(path: Path, methods: Sequence[str]) -> Reference:
    """Read a file of published scores, {"scores": {method: {env: {step: [return, ...]}}}}, of the named methods if any.

    What counts as 0 and 1 stands in it under "random" and "best", or "td3_1M": {env: return}.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = shown(content["scores"])
        scores: dict[str, dict[str, dict[int, Array]]] = {}
        for method, by_env in content["scores"].items():
            for env, by_step in by_env.items() if not methods or method in methods else ():
                curve = {int(step): _finite(values) for step, values in by_step.items()}
                scores.setdefault(env, {})[names[method]] = curve
        one = next((name for name in ("best", "td3_1M") if content.get(name)), "best")
        low, high = content.get("random", {}), content.get(one, {})
        ends = {env: _finite([low[env], high[env]]) for env in low if env in high}
        anchors = {env: (float(zero), float(top)) for env, (zero, top) in ends.items() if zero < top}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no file of reference scores: {error}") from None
    if unknown := set(methods) - set(content["scores"]):
        raise UserError(f"{path} has no method {', '.join(unknown)}; it has {', '.join(content['scores'])}")
    return Reference(scores, anchors, one)


def _finite(values: Sequence[float]) -> Array:
    numbers = np.array(values, float)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"{str(values)[:40]} is no list of scores")
    return numbers


def without_version(env: str) -> str:
    """CartPole of CartPole-v1, whatever its settings."""
    return re.sub(r"-v\d+$", "", env.split(",")[0])


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
    idle = {cell.group for cell in study.cells.values() if cell.never_updated}
    groups = [group for group in study.groups if group not in idle]
    envs = [env for env in study.envs if all(len(study.scores(env, group)) > 1 for group in groups)]
    if len(envs) < 2 or len(groups) < 2:
        return None
    scores = {group: [study.scores(env, group) for env in envs] for group in groups}
    known = {env: reference.anchors[name] for env in envs if (name := without_version(env)) in reference.anchors}
    anchored = known if len(known) > 1 else {}
    normalised = {
        group: [(study.scores(env, group) - zero) / (one - zero) for env, (zero, one) in anchored.items()]
        for group in (groups if anchored else ())
    }
    estimates = {group: statistics.iqm(values) for group, values in normalised.items()}
    ranked = dict(sorted(estimates.items(), key=lambda item: -item[1][0]))
    best = next(iter(ranked), None) or max(groups, key=lambda group: _wins(scores, group))
    improved_on = partial(statistics.probability_of_improvement, scores[best], groups=len(groups))
    against = {group: improved_on(values) for group, values in scores.items() if group != best}
    improvement = dict(sorted(against.items(), key=lambda item: item[1][0]))
    everything = np.concatenate([np.array([0.0, 1.0]), *(x for values in normalised.values() for x in values)])
    thresholds = np.linspace(everything.min(), everything.max(), 201)
    profiles = {group: statistics.performance_profile(values, thresholds) for group, values in normalised.items()}
    return Aggregate(envs, list(anchored), reference.one, best, improvement, ranked, thresholds, profiles)


def _wins(scores: dict[str, list[Array]], group: str) -> float:
    """How often a seed of the group has the higher score than one of another."""
    pairs = [(x, y) for other in scores if other != group for x, y in zip(scores[group], scores[other], strict=True)]
    return float(np.mean([statistics.share_of_wins(x, y) for x, y in pairs]))
