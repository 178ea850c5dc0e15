"""Works through jobs with an engine: starts what can start, watches, and lets all of them save when told to stop."""

import shlex
import signal
import sys
import time
from collections.abc import Iterable
from types import FrameType, TracebackType

from rl_runner.errors import Interrupted
from rl_runner.persistence.session import LOCK, held, stopping
from rl_runner.sweep.board import Board
from rl_runner.sweep.engine import Engine, Worker
from rl_runner.sweep.jobs import Job

PAUSE = 0.2  # seconds between two looks


class Crew:
    """Jobs that wait, are at work, or have ended; `failures` says of each that failed why.

    The first signal stops the crew after every job has saved; a second one does not wait for that.
    """

    def __init__(self, engine: Engine, board: Board):
        self.failures: dict[Job, str] = {}
        self._engine, self._board = engine, board
        self._waiting: list[Job] = []
        self._working: dict[Job, Worker] = {}
        self._dropped: dict[Job, str] = {}
        self._signals: list[int] = []
        self._passed_on = 0  # of them

    def __enter__(self) -> "Crew":
        self._handlers = {signum: signal.signal(signum, self._on_signal) for signum in stopping()}
        self._board.open()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error:
            self._stop_all()
        while self._working:
            self.turn()
        self._board.close()
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        if self._signals and not error:
            unsaved = [f"{job.name}: {error}" for job, error in self.failures.items()]
            if len(self._signals) > 1:
                unsaved.append("what the jobs did since their last checkpoints is lost")
            command = f"rl-runner {shlex.join(sys.argv[1:])}"  # the same again
            raise Interrupted(self._signals[0], command, "; ".join(unsaved))

    @property
    def stopped(self) -> bool:
        """Whether a signal has come."""
        return bool(self._signals)

    def has(self, job: Job) -> bool:
        """Whether a job waits or is at work."""
        return job in self._waiting or job in self._working

    def add(self, jobs: Iterable[Job]) -> None:
        """Jobs to be done, those excepted that are finished."""
        for job in jobs:
            if job.finished:
                self._board.show(job, "finished")
            else:
                self._board.show(job, "waiting")
                self._waiting.append(job)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._working)

    @property
    def free(self) -> int:
        """How many more jobs could be at work than there are."""
        return 0 if self.stopped else self._engine.n_jobs - len(self._waiting) - len(self._working)

    def turn(self) -> list[Job]:
        """Look around once; the jobs that have ended since the last time."""
        while self._passed_on < len(self._signals):
            self._passed_on += 1
            self._stop_all()
        self._start()
        self._board.refresh()
        time.sleep(PAUSE)
        ended = {job: how for job, worker in self._working.items() if (how := worker.ended()) is not None}
        for job, how in ended.items():
            del self._working[job]
            self._conclude(job, how)
        return list(ended)

    def drop(self, job: Job, state: str) -> None:
        """Let one job save and end, or never begin; `state` says what became of it."""
        if worker := self._working.get(job):
            self._dropped[job] = state
            worker.stop()
        elif job in self._waiting:
            self._waiting.remove(job)
            self._board.show(job, state)

    def _start(self) -> None:
        for job in self._waiting[:]:
            if len(self._working) >= self._engine.n_jobs:
                return
            if held(job.directory):  # by what is left of a sweep that was killed and saves, or by somebody else
                owner = (job.directory / LOCK).read_text(errors="replace")
                self._board.show(job, "waiting", f"in use by {owner or 'another process'}")
                continue
            self._waiting.remove(job)
            if job.finished:
                self._board.show(job, "finished")
                continue
            job.say("queued")
            try:
                self._working[job] = self._engine.start(job)
            except OSError as error:  # no space for its log, no room for another process
                self._conclude(job, f"{error.filename or 'it cannot be started'}: {error.strerror or error}")
            else:
                self._board.show(job, "running")

    def _conclude(self, job: Job, how: str) -> None:
        told = self.stopped or job in self._dropped
        state, error = outcome(job, how, told)
        if state == "interrupted" and job in self._dropped:
            state, error = self._dropped[job], ""
            job.say(state)
        if error:
            self.failures[job] = error
        self._board.show(job, state, error)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum != signal.SIGHUP or not self._signals:  # a terminal that closes may say so twice
            self._signals.append(signum)

    def _stop_all(self) -> None:
        self._waiting.clear()
        for worker in self._working.values():
            worker.stop()


def outcome(job: Job, how: str, told_to_stop: bool) -> tuple[str, str]:
    """What has become of a job that ended so, and why if it failed; said in its directory if the job did not."""
    if job.finished:
        return "finished", ""
    status = job.status()
    match status.get("state"):
        case "failed":
            return "failed", str(status.get("error") or how)
        case "running" if told_to_stop:  # it was killed
            job.say("interrupted")
            return "interrupted", ""
        case _ if told_to_stop:
            return "interrupted", str(status.get("error") or "")  # of a checkpoint that failed
        case "interrupted":
            return "interrupted", "interrupted by others"
    error = ": ".join(filter(None, [how or "ended without a result", job.last_line()]))
    job.say("failed", error)
    return "failed", error
