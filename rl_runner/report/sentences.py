"""Conclusions in words; "better", or "higher", only where the interval of the difference excludes 0."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from rl_runner.report.aggregate import Reference
from rl_runner.report.statistics import Interval, difference_interval
from rl_runner.report.study import Cell, Study


class Words(NamedTuple):
    """What it means to have the higher mean."""

    better: str
    worse: str
    best: str
    extreme: str  # which seeds are shown besides the mean
    beats: str


RETURNS = Words("better", "worse", "best", "worst", "beats")
QUANTITIES = Words("higher", "lower", "highest", "lowest to highest", "exceeds")
IDLE = "never updated (learning_starts above total_steps?)"
MEAN_RETURNS = {"eval/return_mean", "eval/exact_return", "charts/episodic_return"}


def words_for(tag: str) -> Words:
    """More is better of a mean return; of anything else, such as a bias, it is only more."""
    return RETURNS if tag in MEAN_RETURNS else QUANTITIES


@dataclass(frozen=True)
class Comparison:
    """The leader (higher mean) against another cell, two seeds or more each.

    At 95 % simultaneously over all pairs of the `groups` it was among, in each of `environments`.
    """

    leader: Cell
    other: Cell
    words: Words
    groups: int
    environments: int = 1

    @cached_property
    def interval(self) -> Interval:
        """Of the difference."""
        ends = difference_interval(self.leader.scores, self.other.scores, self.groups, self.environments)
        return Interval(*map(float, ends))

    @property
    def difference(self) -> float:
        return self.leader.summary.mean - self.other.summary.mean

    @property
    def decided(self) -> bool:
        return self.interval.low > 0 or self.interval.high < 0

    def sentence(self, with_missing: bool = True) -> str:
        """For example: ddqn is better than dqn: +38 [12, 61]."""
        leader, other = self.leader, self.other
        missing = missing_seeds([leader, other]) if with_missing else ""
        numbers = f"{number(self.difference, self.interval.half, sign=True)} {bracket(self.interval)}"
        if self.decided:
            word = self.words.better if self.difference > 0 else self.words.worse
            return f"{leader.group} is {word} than {other.group}{missing}: {numbers}."
        few, many = len(leader.scores), len(other.scores)
        seeds = f"{few} seeds" if few == many else f"{few} and {many} seeds"
        return f"{leader.group} and {other.group} are not distinguishable with {seeds}{missing}: {numbers}."


Comparisons = dict[str, list[Comparison]]  # by environment


def missing_seeds(cells: Iterable[Cell], with_env: bool = False) -> str:
    """What a verdict does not rest on; nothing if no seed is missing."""
    named = enumerated([f"{cell.name(with_env)}: {cell.shortfall}" for cell in cells if cell.shortfall], limit=3)
    return f", counting only seeds with a score ({named})" if named else ""


def compare_all(study: Study, reference: Reference) -> tuple[Comparisons, Comparisons]:
    """Per environment, the group with the highest mean against every other, and against every published method."""
    words, ours, published = words_for(study.tag), {}, {}
    ranked = {env: study.comparable(env) for env in study.envs}
    known = {env: [cell for cell in reference.cells(study, env) if len(cell.scores) > 1] for env in study.envs}
    contested = sum(len(ranked[env]) > 1 for env in study.envs)
    by_others = sum(len(ranked[env]) > 0 and len(known[env]) > 0 for env in study.envs)
    for env, cells in ranked.items():
        n, everyone = len(cells), len(cells) + len(known[env])
        ours[env] = [Comparison(cells[0], other, words, n, contested) for other in cells[1:]]
        published[env] = [Comparison(cells[0], other, words, everyone, by_others) for other in known[env] if cells]
    return ours, published


def headline(study: Study, comparisons: Comparisons) -> str:
    """The answer in one sentence, with what it does not rest on."""
    if not any(run.finished for run in study.runs):
        states = Counter(run.status for run in study.runs)
        return f"No run has finished yet: {', '.join(f'{n} {state}' for state, n in states.items())}."
    scored = [cell for cell in study.cells.values() if len(cell.scores)]
    if not scored:
        return f"No finished run has a value of {study.tag}."
    if all(cell.never_updated for cell in scored):
        return f"No verdict: the finished runs {IDLE}."
    several = len(study.envs) > 1
    single = [cell.name(several) for env in study.envs for cell in study.single(env)]
    contested = {env: found for env, found in comparisons.items() if found}
    out = [f"{cell.name(several)} (never updated)" for cell in scored if cell.never_updated]
    if not contested and single:
        rest = "has one seed" if len(single) == 1 else "have one seed each"
        answer = f"No comparison on {enumerated(study.envs, limit=3)}: {enumerated(single, limit=3)} {rest}"
    else:
        answer = _answer(contested) if contested else _reached(scored)
        out += [f"{name} (one seed)" for name in single]
    aside = f", leaving out {enumerated(out, limit=3)}" if out else ""
    return f"{answer}{aside}{missing_seeds(study.cells.values(), several)}."


def _reached(scored: Sequence[Cell]) -> str:
    """One group per environment: nothing to compare, so say what was reached."""
    parts, most = [], 0
    for cell in scored:
        n = len(cell.scores)
        if not cell.never_updated:
            interval = f" {bracket(cell.summary.interval)}" if cell.summary.interval else ""
            seeds = "1 seed" if n == 1 else f"{n} seeds"
            parts.append(f"{cell.group} reaches {mean_text(cell)}{interval} on {cell.env} ({seeds})")
            most = max(most, n)
    return enumerated(parts, limit=3) + ("; one seed does not tell how far others lie from it" if most == 1 else "")


def _answer(contested: Comparisons) -> str:
    """The headline without its full stop, over the environments that have comparisons."""
    every = list(contested.values())
    if len(every) == 1:
        ((env, found),) = contested.items()
        alone = found[0].sentence(with_missing=False).removesuffix(".")
        return f"On {env}, {alone}" if len(found) == 1 else _one_environment(env, found)
    pairs = {frozenset((found[0].leader.group, found[0].other.group)) for found in every}
    if len(pairs) == 1 and all(len(found) == 1 for found in every):
        return _duel([found[0] for found in every])
    n = len(every)
    (first, count), *others = Counter(found[0].leader.group for found in every).most_common()
    where = f"all {n}" if count == n else f"{count} of {n}"
    rest = f", {enumerated([f'{name} on {k}' for name, k in others], limit=3)}" if others else ""
    clear = sum(all(comparison.decided for comparison in found) for found in every)
    return f"{first} has the highest mean on {where} environments{rest}; the lead is clear on {clear or 'none'}"


def _one_environment(env: str, found: list[Comparison]) -> str:
    leader, words = found[0].leader.group, found[0].words
    open_ones = [comparison.other.group for comparison in found if not comparison.decided]
    if not open_ones:
        return f"{leader} is the {words.best} of {len(found) + 1} on {env}"
    if len(open_ones) == len(found):
        clear = f"{leader} has the highest mean, but none of the others is clearly {words.worse}"
        if all(math.isclose(comparison.difference, 0, abs_tol=1e-9) for comparison in found):
            clear = f"all {len(found) + 1} have the same mean"
        return f"No clear {'winner' if words is RETURNS else 'difference'} on {env}: {clear}"
    behind = len(found) - len(open_ones)
    others = f"{behind} {'is' if behind == 1 else 'are'} {words.worse}"
    return f"{leader} leads on {env}, but cannot be told from {enumerated(open_ones, limit=3)}; {others}"


def _duel(found: list[Comparison]) -> str:
    wins = Counter(comparison.leader.group for comparison in found if comparison.decided and comparison.difference > 0)
    names = sorted([found[0].leader.group, found[0].other.group], key=lambda name: (-wins[name], name))
    words = found[0].words
    ahead, behind = wins[names[0]], wins[names[1]]
    if not ahead:
        return f"{names[0]} and {names[1]} are not distinguishable on any of {len(found)} environments"
    where = f"all {len(found)} environments" if ahead == len(found) else f"{ahead} of {len(found)} environments"
    worse = f", {words.worse} on {behind}" if behind else ""
    rest = len(found) - ahead - behind
    undecided = f", not distinguishable on {rest}" if rest else ""
    return f"{names[0]} is {words.better} than {names[1]} on {where}{worse}{undecided}"


def enumerated(parts: Sequence[str], limit: int) -> str:
    """The parts with commas and an "and"; beyond the limit their number."""
    if len(parts) > limit:
        return f"{', '.join(parts[:limit])} and {len(parts) - limit} more"
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def number(value: float, spread: float, sign: bool = False) -> str:
    """A number to the two digits that its spread (half an interval, an SD) justifies."""
    spread = spread or abs(value) / 10
    digits = max(0, min(6, 1 - math.floor(math.log10(spread)))) if spread > 0 else 0
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text if float(text) else "0"


def bracket(interval: Interval) -> str:
    """An interval as [low, high]."""
    return f"[{number(interval.low, interval.half)}, {number(interval.high, interval.half)}]"


def mean_text(cell: Cell) -> str:
    """The mean of a cell's scores, rounded to what their interval justifies."""
    interval = cell.summary.interval
    return number(cell.summary.mean, interval.half if interval else 0)
