"""One process's stay in a run directory: sole ownership, signals, and a status for others to read."""

import fcntl
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rl_runner.envs.process import one_line
from rl_runner.errors import Interrupted, RunFailed, UserError
from rl_runner.persistence import durable
from rl_runner.rundir import STATUS, write_json

LOCK = ".lock"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
STATUS_EVERY = 5.0  # seconds


class Session:
    """Owns a run directory from `with` to its end; UserError if another live process does.

    The first signal asks to stop at the next checkpoint, a second one ends the process at once.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.signum: int | None = None
        self._status: dict[str, Any] = {}
        self._step: Callable[[], int]
        self._unsaved: str | None = None
        self._written = -STATUS_EVERY
        self._patient = True

    def __enter__(self) -> "Session":
        try:
            durable.make_directory(self.directory)
            self._lock = lock(self.directory / LOCK)
        except OSError as error:
            raise UserError(f"{self.directory} cannot be written: {error.strerror}") from error
        on_main_thread = threading.current_thread() is threading.main_thread()
        self._handlers = {s: signal.signal(s, self._on_signal) for s in stopping()} if on_main_thread else {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler or signal.SIG_DFL)
        if error and self._status:
            with suppress(OSError):  # the error itself says more
                self._write(**how_it_ended(error), sync=True)
        os.close(self._lock)

    @property
    def resume(self) -> str:
        """The command that goes on with the run."""
        return f"rl-runner resume {shlex.quote(str(self.directory))}"

    def begin(self, step: Callable[[], int], total_steps: int) -> None:
        """From here on the status of the directory is this process's; `step` tells where the run stands."""
        self._step = step
        self._status = {
            "state": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "step": step(),
            "total_steps": total_steps,
        }
        self._write()

    def note(self, row: Mapping[str, float]) -> None:
        """Take the latest figures of a row into the status."""
        tags = {"sps": "charts/SPS", "return": "charts/episodic_return", "evaluation": "eval/return_mean"}
        self._status |= {name: row[tag] for name, tag in tags.items() if tag in row}
        self.beat()

    def beat(self) -> None:
        """Say every few seconds where the run stands."""
        if time.monotonic() - self._written >= STATUS_EVERY:
            with suppress(OSError):  # a full disk; the checkpoint says so
                self._write()

    def end(self) -> None:
        """The last word on a run that is done."""
        self._write(state="finished", sync=True)

    @contextmanager
    def impatient(self, unsaved: str | None) -> Iterator[None]:
        """Where everything is saved, but for what is `unsaved`, a signal interrupts at once."""
        self._unsaved, self._patient = unsaved, False
        if self.signum:
            self._interrupt(self.signum)
        yield
        self._patient = True

    def _on_signal(self, signum: int, frame: object) -> None:
        for each in self._handlers:  # a terminal that closes may say so twice
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        self.signum = signum
        if not self._patient:
            self._interrupt(signum)

    def _interrupt(self, signum: int) -> None:
        raise Interrupted(signum, self.resume, self._unsaved)

    def _write(self, sync: bool = False, **changes: Any) -> None:
        self._written = time.monotonic()
        self._status |= {"step": self._step(), "updated": time.time()} | changes
        write_json(self.directory / STATUS, self._status, sync)


def stopping() -> list[signal.Signals]:
    """The signals that ask to save and stop; a closed terminal's, unless this process is to survive that (nohup)."""
    survives = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [each for each in STOPPING if not (survives and each == signal.SIGHUP)]


def how_it_ended(error: BaseException) -> dict[str, str]:
    """What the status of a run says that did not come to its end."""
    if isinstance(error, KeyboardInterrupt | Interrupted):
        unsaved = getattr(error, "unsaved", None)
        return {"state": "interrupted"} | ({"error": unsaved} if unsaved else {})
    return {"state": "failed", "error": str(error) if isinstance(error, RunFailed | UserError) else one_line(error)}


def lock(path: Path) -> int:
    """Lock a file until this process ends, however it ends; its children do not inherit the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode(errors="replace") or "another process"
        os.close(descriptor)
        raise UserError(f"{path.parent} is in use by {owner}: stop that first, or choose another directory") from None
    with suppress(OSError):  # a full disk
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def held(directory: Path) -> bool:
    """Whether a live process owns a run directory."""
    try:
        with (directory / LOCK).open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
