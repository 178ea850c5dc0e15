"""Conclusions in words; "better", or "higher", only where the interval of the difference excludes 0."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rl_runner.report.load import Array
from rl_runner.report.statistics import Interval, difference_interval, summarize
from rl_runner.report.study import Study


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
    """The leader (higher mean) against another group, two seeds or more each; `lost` says whose seeds are missing."""

    leader: str
    other: str
    seeds: tuple[int, int]
    difference: float
    interval: Interval
    words: Words
    lost: str = ""

    @property
    def decided(self) -> bool:
        return self.interval.low > 0 or self.interval.high < 0

    def sentence(self) -> str:
        """For example: ddqn is better than dqn: +38 [12, 61]."""
        numbers = f"{number(self.difference, self.interval.half, sign=True)} {bracket(self.interval)}"
        if self.decided:
            word = self.words.better if self.difference > 0 else self.words.worse
            return f"{self.leader} is {word} than {self.other}{self.lost}: {numbers}."
        return f"{self.leader} and {self.other} are not distinguishable with {self._seeds()}{self.lost}: {numbers}."

    def _seeds(self) -> str:
        few, many = sorted(self.seeds)
        return f"{few} seeds" if few == many else f"{self.seeds[0]} and {self.seeds[1]} seeds"


def compare(
    leader: str,
    scores: Mapping[str, Array],
    others: Sequence[str],
    words: Words,
    groups: int,
    environments: int = 1,
    lost: Mapping[str, str] | None = None,
) -> list[Comparison]:
    """The leader against each of the others; one score makes no comparison.

    At 95 % simultaneously over all pairs of the `groups` it was among, in each of `environments`. `lost`: per group.
    """
    comparisons = []
    for other in others:
        a, b = scores[leader], scores[other]
        if min(len(a), len(b)) < 2:
            continue
        low, high = difference_interval(a, b, groups, environments)
        missing = missing_seeds({name: (lost or {}).get(name, "") for name in (leader, other)})
        interval, difference = Interval(float(low), float(high)), float(a.mean() - b.mean())
        comparisons.append(Comparison(leader, other, (len(a), len(b)), difference, interval, words, missing))
    return comparisons


def missing_seeds(lost: Mapping[str, str]) -> str:
    """What a verdict does not rest on; nothing if no seed is missing."""
    named = enumerated([f"{name}: {shortfall}" for name, shortfall in lost.items() if shortfall], limit=3)
    return f", counting only seeds with a score ({named})" if named else ""


def comparisons_in(study: Study, env: str, environments: int) -> list[Comparison]:
    """The group with the highest mean against every other group of an environment, best first."""
    ranked = study.comparable(env)
    scores = {group: study.scores(env, group) for group in ranked}
    lost = {group: study.shortfall(env, group) for group in ranked}
    words = words_for(study.tag)
    return compare(ranked[0], scores, ranked[1:], words, len(ranked), environments, lost) if ranked else []


def not_compared(study: Study, env: str) -> list[str]:
    """The groups of an environment of which nothing is concluded, and why."""
    groups = study.groups_in(env)
    idle = [group for group in groups if study.never_updated(env, group)]
    single = study.single(env) if len(groups) > 1 else []
    empty = [group for group in groups if not len(study.scores(env, group))] if len(groups) > 1 else []
    found = [f"No verdict on {enumerated(idle, limit=6)}: {IDLE}."] if idle else []
    found += [f"One seed makes no comparison: {enumerated(single, limit=6)}."] if single else []
    return found + [f"{group} has no score: {study.shortfall(env, group)}." for group in empty]


def headline(study: Study, comparisons: Mapping[str, list[Comparison]]) -> str:
    """The answer in one sentence, with what it does not rest on."""
    if not any(run.finished for run in study.runs):
        states = Counter(run.status for run in study.runs)
        return f"No run has finished yet: {', '.join(f'{n} {state}' for state, n in states.items())}."
    scored = {cell: study.scores(*cell) for cell in study.cells if len(study.scores(*cell))}
    if not scored:
        return f"No finished run has a value of {study.tag}."
    idle = [cell for cell in scored if study.never_updated(*cell)]
    if len(idle) == len(scored):
        return f"No verdict: the finished runs {IDLE}."
    several = len(study.envs) > 1
    named = {cell: " on ".join(reversed(cell)) if several else cell[1] for cell in study.cells}
    missing = missing_seeds({named[cell]: study.shortfall(*cell) for cell in study.cells})
    single = [named[env, group] for env in study.envs for group in study.single(env) if len(study.groups_in(env)) > 1]
    answer = _answer(study, {env: found for env, found in comparisons.items() if found}, single)
    out = [f"{named[cell]} (never updated)" for cell in idle]
    out += [] if answer.startswith("No comparison") else [f"{name} (one seed)" for name in single]
    aside = f", leaving out {enumerated(out, limit=3)}" if out else ""
    return f"{answer}{aside}{missing}."


def _answer(study: Study, contested: Mapping[str, list[Comparison]], single: Sequence[str]) -> str:
    """The headline without its full stop."""
    if not contested:
        if not single:
            return _lone(study)
        rest = "has one seed" if len(single) == 1 else "have one seed each"
        return f"No comparison on {enumerated(study.envs, limit=3)}: {enumerated(single, limit=3)} {rest}"
    if len(contested) == 1:
        ((env, found),) = contested.items()
        alone = replace(found[0], lost="").sentence().removesuffix(".")
        return f"On {env}, {alone}" if len(found) == 1 else _one_environment(env, found)
    pairs = {frozenset((found[0].leader, found[0].other)) for found in contested.values()}
    if len(pairs) == 1 and all(len(found) == 1 for found in contested.values()):
        return _duel([found[0] for found in contested.values()])
    return _several_environments(list(contested.values()))


def _lone(study: Study) -> str:
    """One group per environment: nothing to compare, so say what was reached."""
    parts, most = [], 0
    for env, group in study.cells:
        scores = study.scores(env, group)
        if len(scores) and not study.never_updated(env, group):
            summary = summarize(scores)
            interval = f" {bracket(summary.interval)}" if summary.interval else ""
            parts.append(f"{group} reaches {mean_text(scores)}{interval} on {env} ({_count(summary.n, 'seed')})")
            most = max(most, summary.n)
    return enumerated(parts, limit=3) + ("; one seed does not tell how far others lie from it" if most == 1 else "")


def _one_environment(env: str, found: list[Comparison]) -> str:
    leader, words = found[0].leader, found[0].words
    open_ones = [comparison.other for comparison in found if not comparison.decided]
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
    wins = Counter(comparison.leader for comparison in found if comparison.decided and comparison.difference > 0)
    names = sorted({found[0].leader, found[0].other}, key=lambda name: (-wins[name], name))
    words = found[0].words
    ahead, behind = wins[names[0]], wins[names[1]]
    if not ahead:
        return f"{names[0]} and {names[1]} are not distinguishable on any of {len(found)} environments"
    where = f"all {len(found)} environments" if ahead == len(found) else f"{ahead} of {len(found)} environments"
    worse = f", {words.worse} on {behind}" if behind else ""
    rest = len(found) - ahead - behind
    undecided = f", not distinguishable on {rest}" if rest else ""
    return f"{names[0]} is {words.better} than {names[1]} on {where}{worse}{undecided}"


def _several_environments(contested: list[list[Comparison]]) -> str:
    n = len(contested)
    (first, count), *others = Counter(found[0].leader for found in contested).most_common()
    where = f"all {n}" if count == n else f"{count} of {n}"
    rest = f", {enumerated([f'{name} on {k}' for name, k in others], limit=3)}" if others else ""
    clear = sum(all(comparison.decided for comparison in found) for found in contested)
    return f"{first} has the highest mean on {where} environments{rest}; the lead is clear on {clear or 'none'}"


def enumerated(parts: Sequence[str], limit: int) -> str:
    """The parts with commas and an "and"; beyond the limit their number."""
    if len(parts) > limit:
        return f"{', '.join(parts[:limit])} and {len(parts) - limit} more"
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def number(value: float, spread: float, sign: bool = False) -> str:
    """A number to the two digits that its spread (half an interval, an SD) justifies."""
    spread = spread or abs(value) / 10
    digits = max(0, min(6, 1 - math.floor(math.log10(spread)))) if spread > 0 else 0
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text if float(text) else "0"


def bracket(interval: Interval) -> str:
    """An interval as [low, high]."""
    return f"[{number(interval.low, interval.half)}, {number(interval.high, interval.half)}]"


def mean_text(scores: Array) -> str:
    """The mean of scores [n], rounded to what their interval justifies."""
    summary = summarize(scores)
    return number(summary.mean, summary.interval.half if summary.interval else 0)
