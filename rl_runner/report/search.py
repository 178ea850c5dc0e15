"""What a search over hyperparameters has found: the best trial, how it got there, and what mattered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rl_runner.persistence import SEARCH, read_json
from rl_runner.report.names import plain, shown
from rl_runner.report.page import Section
from rl_runner.report.places import places
from rl_runner.report.plots import Picture, Studio, row_name
from rl_runner.report.style import GROUPS, MUTED, TEXT
from rl_runner.report.table import NONE, Table

MOST_ROWS = 10


@dataclass(frozen=True)
class Search:
    """A search's own record: trials with number, state, value and params; the share of each hyperparameter."""

    name: str
    trials: Sequence[dict[str, Any]]
    importance: dict[str, float]

    @property
    def ranked(self) -> list[dict[str, Any]]:
        """The trials that finished, the best one first."""
        finished = [trial for trial in self.trials if trial["state"] == "complete"]
        return sorted(finished, key=lambda trial: -trial["value"])

    def section(self, studio: Studio) -> Section:
        pictures = [_history(self, studio)] if self.ranked else []
        pictures += [_importance(self, studio)] if self.importance else []
        return Section(f"Search {self.name}", text=self.text(), table=self.table(), pictures=pictures)

    def text(self) -> str:
        states = [trial["state"] for trial in self.trials]
        counts = {"complete": "finished", "pruned": "were stopped early", "fail": "failed"}
        said = ", ".join(f"{states.count(key)} {words}" for key, words in counts.items() if key in states)
        if not self.ranked:
            return f"{said}; none has finished yet."
        best = self.ranked[0]
        values = ", ".join(f"{plain(key)}={_said(value)}" for key, value in best["params"].items())
        return (
            f"{said}. The best is trial {best['number']} with {best['value']:.4g}: {values}. "
            "The best of many trials flatters itself: run it again with new seeds before comparing it."
        )

    def table(self) -> Table:
        shown = self.ranked[:MOST_ROWS]
        keys = list(dict.fromkeys(key for trial in shown for key in trial["params"]))
        rows = [
            [str(trial["number"]), *(_said(trial["params"].get(key, NONE)) for key in keys), f"{trial['value']:.4g}"]
            for trial in shown
        ]
        return Table(["trial", *map(plain, keys), "score"], rows)


def searches_in(directories: Sequence[Path]) -> list[Search]:
    """The searches at or below the directories."""
    found = [(path.name, read_json(path / SEARCH)) for path, names in places(directories)[0].items() if SEARCH in names]
    return [Search(plain(name), record["trials"], record["importance"]) for name, record in found if _sound(record)]


def _sound(record: dict[str, Any]) -> bool:
    """Whether a file is a search's record, and not another program's."""
    trials, importance = record.get("trials"), record.get("importance")
    return (
        isinstance(trials, list)
        and isinstance(importance, dict)
        and all(isinstance(share, float | int) for share in importance.values())
        and all(isinstance(trial, dict) and isinstance(trial.get("params"), dict) for trial in trials)
        and all(isinstance(trial.get("value"), float | int) or trial.get("state") != "complete" for trial in trials)
        and all(isinstance(trial.get("number"), int) and isinstance(trial.get("state"), str) for trial in trials)
    )


def _history(search: Search, studio: Studio) -> Picture:
    trials = sorted(search.ranked, key=lambda trial: trial["number"])
    numbers, values = [trial["number"] for trial in trials], [trial["value"] for trial in trials]

    def draw(axes: Axes) -> None:
        axes.plot(numbers, values, "o", color=GROUPS[0].light, markersize=5)
        axes.step(numbers, np.maximum.accumulate(values), where="post", color=TEXT.light, linewidth=1.6)
        axes.set_xlabel("trial")

    title = "Score of every finished trial, and the best so far"
    return studio.picture(f"{search.name}_history", title, title, draw, [])


def _importance(search: Search, studio: Studio) -> Picture:
    names = sorted(search.importance, key=lambda name: search.importance[name])
    labels = shown(names)

    def draw(axes: Axes) -> None:
        rows = np.arange(len(names))
        axes.barh(rows, [search.importance[name] for name in names], height=0.28, color=GROUPS[0].light)
        for row, name in zip(rows, names, strict=True):
            row_name(axes, row + 0.2, labels[name])
        axes.set_yticks([])
        axes.set_ylim(-0.4, len(names) - 0.2)
        axes.set_xlabel("share", color=MUTED.light)

    title = f"What being among the best of {len(search.ranked)} trials depends on"
    return studio.picture(f"{search.name}_importance", title, title, draw, [])


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else plain(str(value))
