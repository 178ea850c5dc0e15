"""What the runs say, in words; "better", or "higher", only where the interval of the difference excludes 0."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rl_runner.commands import SCORE
from rl_runner.console import printable
from rl_runner.report.aggregate import Reference, aggregate
from rl_runner.report.load import SearchRecord, collect
from rl_runner.report.statistics import Interval, difference_interval, number
from rl_runner.report.study import LOSSES, RETURNS, Cell, Study, Words, unnamed_differences

IDLE = "never updated (learning_starts above total_steps?)"


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
        numbers = f"{number(self.difference, self.interval.half, sign=True)} {self.interval}"
        if self.decided:
            word = self.words.better if self.difference > 0 else self.words.worse
            return f"{leader.group} is {word} than {other.group}{missing}: {numbers}."
        seeds = " and ".join(dict.fromkeys([str(len(leader.scores)), str(len(other.scores))]))
        return f"{leader.group} and {other.group} are not distinguishable with {seeds} seeds{missing}: {numbers}."


Comparisons = dict[str, list[Comparison]]  # by environment


class Findings:
    """All that is concluded from the runs at or below the directories, before anything is drawn.

    `comparisons`: the group with the highest mean against every other, `published` against the methods of a reference.
    """

    def __init__(self, directories: Sequence[Path], tag: str = SCORE, reference: Reference | None = None):
        self.directories, self.collection = directories, collect(directories)
        self.study = study = Study(self.collection.runs, tag)
        self.reference = reference if reference and study.words is RETURNS else Reference()  # which holds returns
        self.aggregate = aggregate(study, self.reference)
        ours = {env: study.comparable(env) for env in study.envs}
        theirs = {env: self.reference.cells(study, env) if cells else [] for env, cells in ours.items()}
        several = {env: [cell for cell in cells if len(cell.scores) > 1] for env, cells in theirs.items()}
        self.comparisons = compare(ours, {env: cells[1:] for env, cells in ours.items()}, study.words)
        self.published = compare(ours, several, study.words)
        self.headline = headline(study, self.comparisons)

    @property
    def facts(self) -> str:
        """How much there is, and what the score is."""
        study = self.study
        counts = {"run": len(study.runs), "group": len(study.groups), "environment": len(study.envs)}
        seeds = sorted({len(cell.scores) for cell in study.cells.values()})
        spread = f"{seeds[0]} to " if len(seeds) > 1 else ""
        facts = [counted(n, noun) for noun, n in counts.items()]
        facts += [f"{spread}{counted(seeds[-1], 'finished seed')} per group", f"score: {study.score_words}"]
        return " · ".join(facts)

    @property
    def warning(self) -> str:
        """How many runs have no score, and how many were left out."""
        unreadable, repeated = len(self.collection.unreadable), len(self.study.repeated)
        counts = sum((cell.losses for cell in self.study.cells.values()), Counter(unreadable=unreadable))
        words = LOSSES | {"unreadable": "cannot be read"}
        parts = [f"{counts[loss]} {words[loss]}" for loss in words if counts[loss]]
        said = [f"Of {len(self.study.runs) + unreadable} runs, {enumerated(parts, limit=5)}."] if parts else []
        said += [f"{counted(repeated, 'repeated run')} of a seed left out: the last one counts."] if repeated else []
        return " ".join(said)

    @property
    def differing(self) -> str:
        """What differs between the groups beside what their names say."""
        keys = unnamed_differences(self.study)
        return f"The groups differ in {enumerated(keys, limit=8)}, too: see Settings that differ." if keys else ""

    def answers(self, env: str) -> list[tuple[str, bool]]:
        """Every conclusion of an environment in words, and of what there is none; each with whether it is open."""
        found, cells, limit = [*self.comparisons[env], *self.published[env]], self.study.cells_in(env), 6
        answers = [(comparison.sentence(), not comparison.decided) for comparison in found]
        if idle := [cell.group for cell in cells if cell.never_updated]:
            answers.append((f"No verdict on {enumerated(idle, limit)}: {IDLE}.", True))
        if single := [cell.group for cell in self.study.single(env)]:
            answers.append((f"One seed makes no comparison: {enumerated(single, limit)}.", True))
        empty = [cell for cell in cells if not len(cell.scores) and len(cells) > 1]
        return answers + [(f"{cell.group} has no score: {cell.shortfall}.", True) for cell in empty]

    def ranked(self, env: str) -> list[Cell]:
        """An environment's groups, the highest mean first, then what was published at the same step."""
        cells = self.study.cells_in(env)
        ours = sorted(cells, key=lambda cell: -cell.summary.mean if len(cell.scores) else math.inf)
        return [*ours, *self.reference.cells(self.study, env)]


def compare(ours: Mapping[str, Sequence[Cell]], rivals: Mapping[str, Sequence[Cell]], words: Words) -> Comparisons:
    """The first of every environment's groups against its rivals, which may be among them or published."""
    contested = sum(map(bool, rivals.values()))
    sizes = {env: len({*cells, *rivals[env]}) for env, cells in ours.items()}
    return {
        env: [Comparison(ours[env][0], rival, words, sizes[env], contested) for rival in found]
        for env, found in rivals.items()
    }


def missing_seeds(cells: Iterable[Cell], with_env: bool = False) -> str:
    """What a verdict does not rest on; nothing if no seed is missing."""
    named = enumerated([f"{cell.name(with_env)}: {cell.shortfall}" for cell in cells if cell.shortfall], limit=3)
    return f", counting only seeds with a score ({named})" if named else ""


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
    learned = [cell for cell in scored if not cell.never_updated]
    seeds = {cell: counted(len(cell.scores), "seed") for cell in learned}
    parts = [f"{cell.group} reaches {cell.summary} on {cell.env} ({seeds[cell]})" for cell in learned]
    alone = all(len(cell.scores) == 1 for cell in learned)
    return enumerated(parts, limit=3) + ("; one seed does not tell how far others lie from it" if alone else "")


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


def counted(n: int, noun: str) -> str:
    """So many of something: 1 seed, 2 seeds."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def search_text(search: SearchRecord) -> str:
    """What a search has found in a sentence."""
    states = Counter(trial.state for trial in search.trials)
    words = {"complete": "finished", "pruned": "were stopped early", "fail": "failed"}
    counts = ", ".join(f"{states[state]} {word}" for state, word in words.items() if state in states)
    if not search.ranked:
        return f"{counts}; none has finished yet."
    best = search.ranked[0]
    values = ", ".join(f"{printable(key)}={value}" for key, value in best.shown.items())
    return (
        f"{counts}. The best is trial {best.number} with {best.value:.4g}: {values}. "
        "The best of many trials flatters itself: run it again with new seeds before comparing it."
    )
