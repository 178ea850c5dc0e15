"""Published per-seed scores to draw and compare with: {"scores": {method: {env: {step: [return, ...]}}}}."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rl_runner.errors import UserError
from rl_runner.report.load import Array
from rl_runner.report.names import shown
from rl_runner.report.statistics import Normalisation


@dataclass(frozen=True)
class Reference:
    """Scores by (environment without version, method) and step; what counts as 0 and 1 where it is known."""

    scores: dict[tuple[str, str], dict[int, Array]] = field(default_factory=dict)
    anchors: dict[str, Normalisation] = field(default_factory=dict)
    one: str = "best"  # the name in the file of the scores that count as 1

    def methods(self, env: str) -> list[str]:
        return [method for name, method in self.scores if name == _without_version(env)]

    def curve(self, env: str, method: str) -> dict[int, Array]:
        return self.scores[_without_version(env), method]

    def at(self, env: str, step: int) -> dict[str, Array]:
        """Per-seed scores of every method that was evaluated at exactly this step."""
        curves = {method: self.curve(env, method) for method in self.methods(env)}
        return {f"{method} (published)": curve[step] for method, curve in curves.items() if step in curve}

    def anchor(self, env: str) -> Normalisation | None:
        return self.anchors.get(_without_version(env))


def read_reference(path: Path, methods: Sequence[str]) -> Reference:
    """Read a file of published scores, restricted to the named methods if there are any."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = shown(content["scores"])
        scores = {
            (env, names[method]): {int(step): _finite(values) for step, values in by_step.items()}
            for method, by_env in content["scores"].items()
            for env, by_step in by_env.items()
            if not methods or method in methods
        }
        one = next((name for name in ("best", "td3_1M") if content.get(name)), "best")
        low, high = content.get("random", {}), content.get(one, {})
        ends = {env: _finite([low[env], high[env]]) for env in low if env in high}
        anchors = {env: Normalisation(float(zero), float(top)) for env, (zero, top) in ends.items() if zero < top}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no file of reference scores: {error}") from None
    unknown = set(methods) - set(content["scores"])
    if unknown:
        raise UserError(f"{path} has no method {', '.join(unknown)}; it has {', '.join(content['scores'])}")
    return Reference(scores, anchors, one)


def _finite(values: Sequence[float]) -> Array:
    numbers = np.array(values, float)
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(f"{str(values)[:40]} is no list of scores")
    return numbers


def _without_version(env: str) -> str:
    return re.sub(r"-v\d+$", "", env.split(",")[0])
