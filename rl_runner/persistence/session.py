"""One process's stay in a run directory: sole ownership, signals, how far it is, and when the run is saved."""

import fcntl
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from rl_runner import persistence
from rl_runner.envs.process import one_line
from rl_runner.errors import Interrupted, RunFailed, UserError
from rl_runner.logger import Logger
from rl_runner.persistence import STATUS, write_json
from rl_runner.persistence.checkpoint import Checkpoints
from rl_runner.resume import check_finite, snapshot_of
from rl_runner.train import Run, crossed

LOCK = ".lock"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
STATUS_EVERY = 5.0  # seconds
SAVE_EVERY = 60.0  # seconds
LARGEST_SHARE = 0.01  # of the time that checkpoints may take from training
FIGURES = {"sps": "charts/SPS", "return": "charts/episodic_return", "evaluation": "eval/return_mean"}


class Session:
    """What the directory says of the run, a progress bar on a terminal, elsewhere one line per evaluation.

    The first signal asks to stop at the next checkpoint, a second one ends the process at once.
    """

    signum: int | None = None
    _unsaved: str | None = None
    _patient = True
    _written = -STATUS_EVERY

    def __init__(self, directory: Path):
        self.directory = directory
        self._status: dict[str, Any] = {}

    @property
    def resume(self) -> str:
        """The command that goes on with the run."""
        return f"rl-runner resume {shlex.quote(str(self.directory))}"

    def begin(self, step: Callable[[], int], total_steps: int) -> None:
        """From here on the status of the directory is this process's; `step` tells where the run stands."""
        self._step = step
        self._status = {"state": "running", "pid": os.getpid(), "host": socket.gethostname(), "step": step()}
        self._status["total_steps"] = total_steps
        self._write()
        # Without a terminal it is not shown.
        self.bar = tqdm(total=total_steps, initial=step(), unit="step", disable=None, dynamic_ncols=True)

    def show(self, step: int, row: Mapping[str, float]) -> None:
        """Take the latest figures of a row."""
        self._status |= {name: row[tag] for name, tag in FIGURES.items() if tag in row}
        names = {"return": "return", "eval": "evaluation"}
        latest = {name: f"{self._status[key]:.1f}" for name, key in names.items() if key in self._status}
        self.bar.set_postfix(latest, refresh=False)
        if self.bar.disable and FIGURES["evaluation"] in row:
            figures = ", ".join(f"{name} {value}" for name, value in latest.items())
            print(f"step {step:,} of {self._status['total_steps']:,}: {figures}", flush=True)
        self.heartbeat()

    def heartbeat(self) -> None:
        """Say every few seconds where the run stands."""
        self.bar.update(self._step() - self.bar.n)
        if time.monotonic() - self._written >= STATUS_EVERY:
            with suppress(OSError):  # a full disk; the checkpoint says so
                self._write()

    def end(self, error: BaseException | None = None) -> None:
        """The last word on a run that has begun: that it is done, or how else it ended."""
        if not self._status:
            return
        unsaved = getattr(error, "unsaved", None)
        if error is None:
            changes = {"state": "finished"}
        elif isinstance(error, KeyboardInterrupt | Interrupted):
            changes = {"state": "interrupted"} | ({"error": unsaved} if unsaved else {})
        else:
            said = str(error) if isinstance(error, RunFailed | UserError) else one_line(error)
            changes = {"state": "failed", "error": said}
        self._write(**changes, sync=True)

    @contextmanager
    def impatient(self, unsaved: str | None) -> Iterator[None]:
        """Where everything is saved, but for what is `unsaved`, a signal interrupts at once.

        The handlers stay: others would be taken for an environment's doing, and put back.
        """
        self._unsaved, self._patient = unsaved, False
        if self.signum:
            raise Interrupted(self.signum, self.resume, unsaved)
        yield
        self._patient = True

    def on_signal(self, signum: int, frame: object) -> None:
        for each in stopping():  # a terminal that closes may say so twice
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        self.signum = signum
        if not self._patient:
            raise Interrupted(signum, self.resume, self._unsaved)

    def _write(self, sync: bool = False, **changes: Any) -> None:
        self._written = time.monotonic()
        self._status |= {"step": self._step(), "updated": time.time()} | changes
        write_json(self.directory / STATUS, self._status, sync)


@contextmanager
def session_in(directory: Path) -> Iterator[Session]:
    """A session that owns a run directory; UserError if another live process does. Its end is in the status."""
    with own(directory):
        session = Session(directory)
        try:
            with on_signals(session.on_signal):
                yield session
        except BaseException as error:
            with suppress(OSError):  # the error itself says more
                session.end(error)
            raise


class Saver:
    """Saves a run about once a minute or every so many environment steps, and whenever a signal asks it to stop."""

    def __init__(self, run: Run, checkpoints: Checkpoints, logger: Logger, session: Session, wall_seconds: float):
        self._run, self._checkpoints, self._logger, self._session = run, checkpoints, logger, session
        self._started = time.monotonic() - wall_seconds
        self._due = time.monotonic() + SAVE_EVERY
        self._step = run.step  # of the last checkpoint
        self._failing = False  # as was last said

    @property
    def wall_seconds(self) -> float:
        """How long the run has taken so far, in all the processes that worked on it."""
        return time.monotonic() - self._started

    def after_step(self) -> None:
        """Save if it is time, and say once that saving fails or works again; Interrupted if a signal asked to stop."""
        self._session.heartbeat()
        self._logger.catch_up()
        if self._session.signum:
            raise Interrupted(self._session.signum, self._session.resume, self.save(wait=True))
        problem = self._checkpoints.problem
        if problem and not self._failing:
            print(f"{problem}: training goes on", file=sys.stderr)
        elif self._failing and not problem:
            print(f"checkpoints land again: step {self._checkpoints.saved_step:,}", file=sys.stderr)
        self._failing = bool(problem)
        every = self._run.config.checkpoint_every
        if crossed(every, self._step, self._run.step) if every else time.monotonic() >= self._due:
            self.save()

    def save(self, wait: bool = False) -> str | None:
        """Save the run as it is now; RunFailed if there is nothing sound to save.

        If asked, wait for the disk, and return what is wrong with it if the state is not there.
        """
        started = time.monotonic()
        check_finite(self._run)
        try:
            records = {"written": self._logger.sync(), "wall_seconds": self.wall_seconds}
        except OSError as error:
            self._checkpoints.failed(self._run.step, error)
        else:
            self._checkpoints.save(self._run.step, snapshot_of(self._run) | records)
        if wait:
            self._checkpoints.wait()
        now = time.monotonic()
        self._step = self._run.step
        self._due = now + max(SAVE_EVERY, (now - started) / LARGEST_SHARE)
        return self._checkpoints.problem if wait else None


@contextmanager
def own(directory: Path) -> Iterator[None]:
    """Make a directory this process's until it leaves it or ends, however; UserError if it is another live one's.

    Children do not inherit the lock.
    """
    try:
        persistence.make_directory(directory)
        file = (directory / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror}") from error
    with file:
        if owner := locked_by(file):
            raise UserError(f"{directory} is in use by {owner}: stop that first, or choose another directory")
        with suppress(OSError):  # a full disk
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def owner_of(directory: Path) -> str | None:
    """The live process that owns a directory, in words, if there is one."""
    with suppress(FileNotFoundError), (directory / LOCK).open("r+b") as file:
        return locked_by(file)
    return None


def locked_by(file: BinaryIO) -> str | None:
    """Lock a file, or say who has it locked."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read(200).decode(errors="replace") or "another process"
    return None


@contextmanager
def on_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let a handler have the signals that ask to save and stop, if this is the thread that they reach."""
    signals = stopping() if threading.current_thread() is threading.main_thread() else []
    before = {signum: signal.signal(signum, handler) for signum in signals}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier or signal.SIG_DFL)


def stopping() -> list[signal.Signals]:
    """The signals that ask to save and stop; a closed terminal's, unless this process is to survive that (nohup)."""
    survives = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [each for each in STOPPING if not (survives and each == signal.SIGHUP)]
