"""What a sweep shows while it works: a live table on a terminal, elsewhere one line per change."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rl_runner.sweep.jobs import Job

COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "interrupted": "yellow", "pruned": "magenta"}
# The rows that are kept when a terminal is too low for all.
URGENCY = ["running", "failed", "interrupted", "waiting", "pruned", "finished"]
OTHER_LINES = 6  # of the table's frame and the line below it


class Board:
    """The states of all jobs; what a running one has reached is read from its directory."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._states: dict[Job, str] = {}
        self._remarks: dict[Job, str] = {}
        self._live = Live(console=self._console, auto_refresh=False)

    def open(self) -> None:
        if self._console.is_terminal:
            self._live.start()

    def close(self) -> None:
        self.refresh()
        self._live.stop()

    def show(self, job: Job, state: str, remark: str = "") -> None:
        """Take note of a job's state."""
        if (self._states.get(job), self._remarks.get(job)) == (state, remark):
            return
        self._states[job], self._remarks[job] = state, remark
        if not self._console.is_terminal and (state != "waiting" or remark):
            evaluation = job.status().get("evaluation") if state == "finished" else None
            said = remark or ("" if evaluation is None else f"evaluation {evaluation:.4g}")
            print(f"{job.name}: {state}{', ' if said else ''}{said}", flush=True)

    def refresh(self) -> None:
        if self._live.is_started:
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> Group:
        shown = sorted(self._states, key=lambda job: URGENCY.index(self._states[job]))
        shown = shown[: max(1, self._console.height - OTHER_LINES)]
        table = Table("job", "", "step", "return", "evaluation", "time left", box=None, pad_edge=False)
        for job in self._states:  # in their own order
            if job in shown:
                table.add_row(*self._row(job))
        counts = Counter(self._states.values())
        return Group(table, Text(", ".join(f"{counts[state]} {state}" for state in URGENCY if counts[state])))

    def _row(self, job: Job) -> Sequence[Text | str]:
        state, status = self._states[job], job.status()
        if state == "running" and status.get("state") == "queued":
            state = "queued"
        name, styled = Text(job.name), Text(state, COLOURS.get(state, "dim"))
        if self._remarks[job]:
            return [name, styled, Text(self._remarks[job])]
        step, total = status.get("step"), job.config.total_steps
        progress = "" if step is None else f"{step:,} of {total:,}"
        figures = [f"{status[key]:.4g}" if key in status else "" for key in ("return", "evaluation")]
        return [name, styled, progress, *figures, time_left(status, total) if state == "running" else ""]


def time_left(status: dict[str, Any], total_steps: int) -> str:
    """What the present speed promises."""
    if not status.get("sps"):
        return ""
    return duration((total_steps - status["step"]) / status["sps"])


def duration(seconds: float) -> str:
    """Two digits' worth of a time: 3 s, 12 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
