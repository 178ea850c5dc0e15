"""Works through jobs with an engine: starts what can start, shows how it goes, lets all save when told to stop."""

import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rl_runner.errors import Interrupted
from rl_runner.persistence.session import on_signals, owner_of
from rl_runner.sweep.engines import Engine
from rl_runner.sweep.jobs import Job, duration

PAUSE = 0.2  # seconds between two looks
COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "interrupted": "yellow", "pruned": "magenta"}
# The rows that are kept when a terminal is too low for all.
URGENCY = ["running", "failed", "interrupted", "waiting", "pruned", "finished"]
OTHER_LINES = 6  # of the table's frame and the line below it


@contextmanager
def crew_of(engine: Engine) -> Iterator["Crew"]:
    """A crew that has let every job save and end when it is left.

    The first signal stops the crew after every job has saved, which raises Interrupted; a second one does not wait.
    """
    crew = Crew(engine)
    with on_signals(crew.on_signal):
        try:
            yield crew
        except BaseException:
            crew.stop()
            raise
        finally:
            while crew.working:
                crew.poll()
            crew.refresh()
            crew.live.stop()
    if crew.signals:
        unsaved = [f"{job.name}: {error}" for job, error in crew.failures.items()]
        if len(crew.signals) > 1:
            unsaved.append("what the jobs did since their last checkpoints is lost")
        command = f"rl-runner {shlex.join(sys.argv[1:])}"  # the same again
        raise Interrupted(crew.signals[0], command, "; ".join(unsaved))


class Crew:
    """Jobs that wait, are at work, or have ended; `failures` says of each that failed why.

    A terminal shows a live table of them, elsewhere each change is a line.
    """

    def __init__(self, engine: Engine):
        self.failures: dict[Job, str] = {}
        self.working: dict[Job, Any] = {}  # what the engine has started
        self.signals: list[int] = []
        self.live = Live(console=Console(stderr=True), auto_refresh=False)
        self._engine = engine
        self._jobs: dict[Job, tuple[str, str]] = {}  # state and remark
        self._stopped = False
        self._passed_on = 0  # of the signals
        if self.live.console.is_terminal:
            self.live.start()

    @property
    def waiting(self) -> list[Job]:
        """The jobs that will be started when there is room for them."""
        return [job for job, (state, _) in self._jobs.items() if state == "waiting" and not self._stopped]

    @property
    def free(self) -> int:
        """How many more jobs could be at work than there are."""
        return 0 if self.signals else self._engine.n_jobs - len(self.waiting) - len(self.working)

    def add(self, jobs: Iterable[Job]) -> None:
        """Jobs to be done, those excepted that are finished."""
        for job in jobs:
            self._show(job, "finished" if job.finished else "waiting")

    def finish(self, jobs: Iterable[Job]) -> None:
        """Do jobs until all have ended."""
        self.add(jobs)
        while self.waiting or self.working:
            self.poll()

    def has(self, job: Job) -> bool:
        """Whether a job waits or is at work."""
        return job in self.waiting or job in self.working

    def poll(self) -> bool:
        """Look around once; whether a job has ended since the last time."""
        while self._passed_on < len(self.signals):
            self._passed_on += 1
            self.stop()
        self._start()
        self.refresh()
        time.sleep(PAUSE)
        ended = {job: self._engine.ended(started) for job, started in self.working.items()}
        for job, how in ended.items():
            if how is not None:
                del self.working[job]
                self._conclude(job, how)
        return any(how is not None for how in ended.values())

    def prune(self, job: Job) -> None:
        """Let one job save and end, or never begin."""
        if job in self.working:
            self._engine.stop(self.working[job])
        if self.has(job):
            self._show(job, "pruned")

    def stop(self) -> None:
        """Let every job save and end; a second time without saving."""
        self._stopped = True
        for started in self.working.values():
            self._engine.stop(started)

    def on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGHUP or not self.signals:  # a terminal that closes may say so twice
            self.signals.append(signum)

    def _start(self) -> None:
        for job in self.waiting:
            if len(self.working) >= self._engine.n_jobs:
                return
            if owner := owner_of(job.directory):  # what is left of a sweep that was killed and saves, or somebody else
                self._show(job, "waiting", f"in use by {owner}")
                continue
            if job.finished:  # by that one
                self._show(job, "finished")
                continue
            job.set_status("queued")
            try:
                self.working[job] = self._engine.start(job)
                self._show(job, "running")
            except OSError as error:  # no space for its log, no room for another process
                self._conclude(job, f"{error.filename or 'it cannot be started'}: {error.strerror or error}")

    def _conclude(self, job: Job, how: str) -> None:
        """Take note of what has become of a job that ended so; say it in its directory if the job did not."""
        status = job.status()
        state, error = status.get("state"), str(status.get("error") or "")
        if job.finished:
            state, error = "finished", ""
        elif state == "failed":
            error = error or how
        elif self._jobs[job][0] == "pruned":
            state, error = "pruned", ""
            job.set_status(state)
        elif self.signals:
            if state == "running":  # it was killed
                job.set_status("interrupted")
            state = "interrupted"  # with the error of a checkpoint that failed, if there is one
        elif state == "interrupted":
            error = "interrupted by others"
        else:
            state, error = "failed", ": ".join(filter(None, [how or "ended without a result", job.last_line()]))
            job.set_status(state, error)
        if error:
            self.failures[job] = error
        self._show(job, state, error)

    def _show(self, job: Job, state: str, remark: str = "") -> None:
        if self._jobs.get(job) == (state, remark):
            return
        self._jobs[job] = (state, remark)
        if not self.live.console.is_terminal and (state != "waiting" or remark):
            evaluation = job.status().get("evaluation") if state == "finished" else None
            said = remark or ("" if evaluation is None else f"evaluation {evaluation:.4g}")
            print(f"{job.name}: {state}{', ' if said else ''}{said}", flush=True)

    def refresh(self) -> None:
        """Draw the table anew, of which a low terminal shows the most urgent rows."""
        if not self.live.is_started:
            return
        urgent = sorted(self._jobs, key=lambda job: URGENCY.index(self._jobs[job][0]))
        urgent = urgent[: max(1, self.live.console.height - OTHER_LINES)]
        table = Table("job", "", "step", "return", "evaluation", "time left", box=None, pad_edge=False)
        for job, (state, remark) in self._jobs.items():  # in their own order
            if job in urgent:
                table.add_row(Text(job.name), *cells(job, state, remark))
        counts = Counter(state for state, _ in self._jobs.values())
        summary = Text(", ".join(f"{counts[state]} {state}" for state in URGENCY if counts[state]))
        self.live.update(Group(table, summary), refresh=True)


def cells(job: Job, state: str, remark: str) -> list[Text | str]:
    """A job's state, and what its directory tells of it: steps, latest figures, what the present speed promises."""
    status, total = job.status(), job.config.total_steps
    if state == "running" and status.get("state") == "queued":
        state = "queued"
    styled = Text(state, COLOURS.get(state, "dim"))
    if remark:
        return [styled, Text(remark)]
    steps = f"{status['step']:,} of {total:,}" if "step" in status else ""
    figures = [f"{status[key]:.4g}" if key in status else "" for key in ("return", "evaluation")]
    left = duration((total - status["step"]) / status["sps"]) if state == "running" and status.get("sps") else ""
    return [styled, steps, *figures, left]
