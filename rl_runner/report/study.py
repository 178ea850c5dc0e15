"""The runs of a report, ordered: what each group has reached, and what became of its other seeds."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from rl_runner.report.load import Array, Run

LOST = {"failed": "failed", "pruned": "stopped early", "finished": "without a score"}  # what became of a run
LOSSES = ("failed", "unfinished", "stopped early", "without a score")


@dataclass(frozen=True)
class Study:
    """Runs by (environment, group), each list ordered by seed.

    `named_by`: the settings that name the groups. `final`: whether the score is the final evaluation's, or else the
    tag's value at the end of training. `cut`: the names that are shown shortened, with their full length.
    """

    cells: dict[tuple[str, str], list[Run]]
    envs: list[str]
    groups: list[str]
    repeated: list[Run]
    tag: str
    final: bool
    named_by: frozenset[str]
    cut: dict[str, str]

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells.values() for run in cell]

    @property
    def score_words(self) -> str:
        """What the score is."""
        return f"{self.tag} of the final evaluation" if self.final else f"{self.tag}, mean of the last tenth of a run"

    def groups_in(self, env: str) -> list[str]:
        return [group for group in self.groups if (env, group) in self.cells]

    def score(self, run: Run) -> float | None:
        """The value of the tag, only if the run came to its end."""
        if not run.finished:
            return None
        return run.result.get(self.tag) if self.final else run.at_end(self.tag)

    def scores(self, env: str, group: str) -> Array:
        """Final scores [seeds] of the runs that have one."""
        scores = (self.score(run) for run in self.cells.get((env, group), []))
        return np.array([score for score in scores if score is not None])

    def never_updated(self, env: str, group: str) -> bool:
        """Whether the group's scores are those of an agent that has not learned."""
        return any(run.never_updated for run in self.cells[env, group])

    def comparable(self, env: str) -> list[str]:
        """The groups that have learned and have two scores or more, the highest mean first."""
        scores = {group: self.scores(env, group) for group in self.groups_in(env) if not self.never_updated(env, group)}
        several = [group for group in scores if len(scores[group]) > 1]
        return sorted(several, key=lambda group: -scores[group].mean())

    def single(self, env: str) -> list[str]:
        """The groups that have learned and have one score."""
        groups = [group for group in self.groups_in(env) if not self.never_updated(env, group)]
        return [group for group in groups if len(self.scores(env, group)) == 1]

    def losses(self, env: str, group: str) -> Counter[str]:
        """How many runs have no score, by what became of them."""
        cell = self.cells.get((env, group), [])
        return Counter(LOST.get(run.status, "unfinished") for run in cell if self.score(run) is None)

    def shortfall(self, env: str, group: str) -> str:
        """For example "1 of 5 failed"; nothing if every run has a score."""
        losses = [f"{n} {word}" for word, n in self.losses(env, group).items()]
        total = len(self.cells.get((env, group), []))
        return ", ".join([losses[0].replace(" ", f" of {total} ", 1), *losses[1:]]) if losses else ""
