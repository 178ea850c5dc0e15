"""Which runs are seeds of the same thing: environment x group, a group being what really differs; what each reached."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import NamedTuple, TypeVar

import numpy as np

from rl_runner.console import printable
from rl_runner.errors import UserError
from rl_runner.report.load import Array, RunRecord, short_hash
from rl_runner.report.statistics import Summary, mean_interval, summarize

# Keys that say where, how fast or how often something is written or measured, not what is learned.
CANNOT_MATTER = {
    "accelerate", "checkpoint_every", "device", "dry_run", "eval_episodes", "eval_every", "final_eval_episodes",
    "fresh", "log_every", "plugins", "threads", "replay.storage",
}  # fmt: skip
BOOKKEEPING = ("chosen.", "command", "env.")
LONGEST = 48  # letters of a name, which fit into a picture
POINTS = 200  # of a curve that is drawn
BAND_RESAMPLES = 999
LOST = {"failed": "failed", "pruned": "stopped early", "finished": "without a score"}  # what became of a run
LOSSES = {  # in words
    "failed": "failed", "unfinished": "did not finish yet", "stopped early": "stopped early by a search",
    "without a score": "finished without a score",
}  # fmt: skip

MEAN_RETURNS = {"eval/return_mean", "eval/exact_return", "charts/episodic_return"}

Item = TypeVar("Item")
Key = TypeVar("Key")


class Words(NamedTuple):
    """What it means to have the higher mean."""

    better: str
    worse: str
    best: str
    extreme: str  # which seeds are shown besides the mean
    beats: str


RETURNS = Words("better", "worse", "best", "worst", "beats")
QUANTITIES = Words("higher", "lower", "highest", "lowest to highest", "exceeds")


@dataclass(frozen=True, eq=False)
class Cell:
    """A group in an environment: its runs, ordered by seed, and the scores of those that have one; or published scores.

    `losses`: how many runs have no score, by what became of them.
    """

    env: str
    group: str
    runs: Sequence[RunRecord]
    scores: Array
    losses: Counter[str]

    @cached_property
    def summary(self) -> Summary:
        """Of the scores, which must be one or more."""
        return summarize(self.scores)

    @property
    def never_updated(self) -> bool:
        """Whether the scores are those of an agent that has not learned."""
        return any(run.finished and run.result.get("updates") == 0 for run in self.runs)

    @property
    def shortfall(self) -> str:
        """For example "1 of 5 failed"; nothing if every run has a score."""
        losses = [f"{n} {word}" for word, n in self.losses.items()]
        return ", ".join([losses[0].replace(" ", f" of {len(self.runs)} ", 1), *losses[1:]]) if losses else ""

    def name(self, with_env: bool) -> str:
        return f"{self.group} on {self.env}" if with_env else self.group

    def mean_of(self, key: str) -> float | None:
        """The mean over finished runs of a number of their results."""
        values = [run.result[key] for run in self.runs if run.finished and key in run.result]
        return fmean(values) if values else None

    def band(self, tag: str) -> tuple[Array, Array, Array, Array] | None:
        """Steps, mean curve and the ends of its pointwise 95 % interval, which with one seed are the mean itself.

        Over the finished runs, or over all runs while none has finished, where all of them have points.
        """
        known = [run for run in self.runs if tag in run.curves]
        curves = [run.curves[tag] for run in [run for run in known if run.finished] or known]
        if not curves:
            return None
        start, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
        steps = np.unique(np.concatenate([curve.steps for curve in curves]))
        (steps,) = thinned(steps[(steps >= start) & (steps <= end)])
        if not len(steps):
            return None
        values = np.stack([np.interp(steps, curve.steps, curve.values) for curve in curves], axis=-1)
        mean = values.mean(axis=-1)
        low, high = mean_interval(values, BAND_RESAMPLES) if len(curves) > 1 else (mean, mean)
        return steps, mean, low, high


class Study:
    """Cells by (environment, group); `repeated`: runs of a seed of which another run counts, the last finished one.

    `named_by`: the settings that name the groups. `final`: whether the score is the final evaluation's, or else the
    tag's value at the end of training. `words`: more is better of a mean return, of anything else it is only more.
    `cut`: the names that are shown shortened, with their full length.
    """

    def __init__(self, runs: Sequence[RunRecord], tag: str):
        _check(runs, tag)
        self.tag, self.final = tag, any(tag in run.result for run in runs)
        self.words = RETURNS if tag in MEAN_RETURNS else QUANTITIES
        env_of: dict[RunRecord, str] = {}
        for env_id, same in grouped(runs, lambda run: run.env_id).items():
            keys = sorted(key for key in varying(same) if key.startswith("env.") and key != "env.id")
            env_of |= {run: ", ".join([env_id, *_terms(run, keys)]) for run in same}
        keys_of = {algo: _telling_keys(same, env_of) for algo, same in grouped(runs, lambda run: run.algo).items()}
        group_of = {}
        for run in runs:
            terms = _terms(run, keys_of[run.algo])
            group_of[run] = ", ".join([run.algo, *terms] if len(keys_of) > 1 or not terms else terms)
        envs, groups = (shown(in_order(names.values())) for names in (env_of, group_of))
        self.envs, self.groups = list(envs.values()), list(groups.values())
        self.cut = {short: printable(name) for name, short in (envs | groups).items() if short != printable(name)}
        self.named_by = {"algo._target_", *(key for keys in keys_of.values() for key in keys)}
        place = {run: (envs[env_of[run]], groups[group_of[run]]) for run in runs}
        last = {(place[run], run.seed): run for run in sorted(runs, key=lambda run: (run.finished, run.name))}
        kept = [run for run in sorted(runs, key=lambda run: run.seed) if last[place[run], run.seed] is run]
        self.repeated = [run for run in runs if run not in kept]
        self.cells: dict[tuple[str, str], Cell] = {}
        for (env, group), members in grouped(kept, place.__getitem__).items():
            lost = [run for run in members if self.score(run) is None]
            scores = np.array([self.score(run) for run in members if run not in lost], float)
            losses = Counter(LOST.get(run.status, "unfinished") for run in lost)
            self.cells[env, group] = Cell(env, group, members, scores, losses)

    @property
    def runs(self) -> list[RunRecord]:
        return [run for cell in self.cells.values() for run in cell.runs]

    @property
    def score_words(self) -> str:
        """What the score is."""
        return f"{self.tag} of the final evaluation" if self.final else f"{self.tag}, mean of the last tenth of a run"

    def cells_in(self, env: str) -> list[Cell]:
        return [self.cells[env, group] for group in self.groups if (env, group) in self.cells]

    def budget(self, env: str) -> int:
        """The largest total_steps among an environment's runs."""
        return max(run.settings["total_steps"] for cell in self.cells_in(env) for run in cell.runs)

    def score(self, run: RunRecord) -> float | None:
        """The value of the tag, only if the run came to its end."""
        if not run.finished:
            return None
        return run.result.get(self.tag) if self.final else run.at_end(self.tag)

    def scores(self, env: str, group: str) -> Array:
        """Final scores [seeds] of the runs that have one."""
        return self.cells[env, group].scores if (env, group) in self.cells else np.array([])

    def comparable(self, env: str) -> list[Cell]:
        """The groups that have learned and have two scores or more, the highest mean first."""
        several = [cell for cell in self.cells_in(env) if not cell.never_updated and len(cell.scores) > 1]
        return sorted(several, key=lambda cell: -cell.summary.mean)

    def single(self, env: str) -> list[Cell]:
        """The groups that have learned and have one score, where there are others."""
        cells = self.cells_in(env)
        return [cell for cell in cells if not cell.never_updated and len(cell.scores) == 1 and len(cells) > 1]


def thinned(steps: Array, *others: Array) -> list[Array]:
    """At most POINTS of the points, evenly spread, the ends among them."""
    index = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int))
    return [values[index] for values in (steps, *others)]


def _check(runs: Sequence[RunRecord], tag: str) -> None:
    """UserError if no run has the tag, with those that there are."""
    tags = _tags([run for run in runs if run.finished]) or _tags(runs)
    if not tags or tag in tags:
        return
    offered = ", ".join(printable(name) for name in sorted(tags))
    if tag.startswith("eval/") and not any(name.startswith("eval/") for name in tags):
        raise UserError(f"no run has been evaluated yet; choose with --tag from {offered}")
    raise UserError(f"no run has the tag {tag}; there are {offered}")


def _tags(runs: Sequence[RunRecord]) -> set[str]:
    return {name for run in runs for name in [*run.result, *run.curves] if "/" in name or name in run.curves}


def _telling_keys(runs: Sequence[RunRecord], env_of: dict[RunRecord, str]) -> list[str]:
    """The fewest keys that tell an algorithm's runs apart within an environment; the command line's keys first."""
    differing = {key for same in grouped(runs, env_of.__getitem__).values() for key in varying(same)}
    named = {term.split("=")[0].lstrip("+") for run in runs for term in run.settings["command"]}
    kept: list[str] = []

    def classes(*keys: str) -> int:
        return len({(env_of[run], *(value_of(run, key) for key in keys)) for run in runs})

    # A key was named if the command line set it, or chose its whole group.
    matter = sorted(filter(may_matter, differing), key=lambda key: (named.isdisjoint([key, key.split(".")[0]]), key))
    for key in matter:
        if classes(*kept, key) > classes(*kept):
            kept.append(key)
    # Runs that share a seed are no replicates: then even a key that "cannot matter" tells them apart.
    for key in sorted(differing & CANNOT_MATTER):
        if classes(*kept, "seed", key) > classes(*kept, "seed"):
            kept.append(key)
    return kept


def may_matter(key: str) -> bool:
    """Whether a setting may change what is learned, and is no part of the environment's name."""
    return not (key in {*CANNOT_MATTER, "seed"} or key.startswith(BOOKKEEPING) or key.endswith("._partial_"))


def varying(runs: Sequence[RunRecord]) -> set[str]:
    """The settings that are not the same in all of the runs."""
    keys = {key for run in runs for key in run.settings}
    return {key for key in keys if len({value_of(run, key) for run in runs}) > 1}


def unnamed_differences(study: Study) -> list[str]:
    """The settings, known to all groups of an environment, in which these differ though their names do not say so."""
    found = set()
    for env in study.envs:
        groups = [cell.runs for cell in study.cells_in(env)]
        runs = [run for group in groups for run in group]
        for key in filter(may_matter, varying(runs) - study.named_by):
            first, *others = [{value_of(run, key) for run in group} for group in groups]
            if all(key in run.settings for run in runs) and any(values != first for values in others):
                found.add(key)
    return sorted(found)


def value_of(run: RunRecord, key: str) -> str:
    """A setting as it is compared and shown."""
    value = run.settings.get(key)
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "")


def _terms(run: RunRecord, keys: Sequence[str]) -> list[str]:
    """For example ["gamma=0.9", "lr=0.001"]: the last part of each key, where it is the only one."""
    names = [key.removesuffix("._target_").rpartition(".")[2] for key in keys]
    terms = zip(keys, names, strict=True)
    return [
        f"{name if names.count(name) == 1 else key}={value_of(run, key)}" for key, name in terms if key in run.settings
    ]


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once, alphabetical, with numbers inside the names by value."""
    number = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?)")

    def key(name: str) -> list[tuple[float, str]]:
        return [(float(part), "") if number.fullmatch(part) else (-1.0, part) for part in number.split(name)]

    return sorted(set(names), key=key)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by what `key` makes of them, in the order of their first."""
    found: dict[Key, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def shown(names: Iterable[str]) -> dict[str, str]:
    """Each name as it is shown; one that is too long, or looks like another, ends in a hash of the whole."""
    found: dict[str, str] = {}
    for name in dict.fromkeys(names):
        text = printable(name)
        if not text or len(text) > LONGEST or text in found.values():
            text = f"{text[: LONGEST - 8].rstrip(' ,')}… {short_hash(name)}".lstrip("… ")
        found[name] = text
    return found
