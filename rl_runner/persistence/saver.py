"""When a run is saved, and what else happens between two steps: signals, and the status for others to read."""

import sys
import time
from typing import Any

from rl_runner.errors import Interrupted
from rl_runner.logger import Logger
from rl_runner.persistence import snapshot
from rl_runner.persistence.checkpoint import Checkpoints
from rl_runner.persistence.session import Session
from rl_runner.train import Run, crossed

SECONDS = 60.0  # between checkpoints
LARGEST_SHARE = 0.01  # of the time that checkpoints may take from training


class Saver:
    """Saves a run about once a minute or every so many environment steps, and whenever a signal asks it to stop."""

    def __init__(self, run: Run, checkpoints: Checkpoints, logger: Logger, session: Session, wall_seconds: float):
        self._run, self._checkpoints, self._logger, self._session = run, checkpoints, logger, session
        self._started = time.monotonic() - wall_seconds
        self._due = time.monotonic() + SECONDS
        self._step = run.step  # of the last checkpoint
        self._failing = False  # as was last said

    def after_step(self) -> None:
        """Save if it is time; Interrupted if a signal asked to stop."""
        self._session.beat()
        if self._session.signum:
            raise Interrupted(self._session.signum, self._session.resume, self.save(wait=True))
        self._tell()
        every = self._run.config.checkpoint_every
        if crossed(every, self._step, self._run.step) if every else time.monotonic() >= self._due:
            self.save()

    def save(self, wait: bool = False) -> str | None:
        """Save the run as it is now; RunFailed if there is nothing sound to save.

        If asked, wait for the disk, and return what is wrong with it if the state is not there.
        """
        started = time.monotonic()
        snapshot.check(self._run)
        try:
            state = snapshot.take(self._run) | self._records()
        except OSError as error:
            self._checkpoints.failed(self._run.step, error)
        else:
            self._checkpoints.save(self._run.step, state)
        if wait:
            self._checkpoints.wait()
        now = time.monotonic()
        self._step = self._run.step
        self._due = now + max(SECONDS, (now - started) / LARGEST_SHARE)
        return self._checkpoints.problem if wait else None

    def _tell(self) -> None:
        """Say that checkpoints fail, or that they land again, each once."""
        problem = self._checkpoints.problem
        if problem and not self._failing:
            print(f"{problem}: training goes on", file=sys.stderr)
        elif self._failing and not problem:
            print(f"checkpoints land again: step {self._checkpoints.saved_step:,}", file=sys.stderr)
        self._failing = bool(problem)

    @property
    def wall_seconds(self) -> float:
        """How long the run has taken so far, in all the processes that worked on it."""
        return time.monotonic() - self._started

    def _records(self) -> dict[str, Any]:
        return {"written": self._logger.sync(), "wall_seconds": self.wall_seconds}
