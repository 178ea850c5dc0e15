"""One process's stay in a run directory: sole ownership, signals, and a status for others to read."""

import fcntl
import os
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rl_runner.envs.spaces import one_line
from rl_runner.errors import Interrupted, RunFailed, UserError
from rl_runner.rundir import STATUS, write_json

LOCK = ".lock"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
STATUS_EVERY = 5.0  # seconds


class Session:
    """Owns a run directory from `with` to its end; UserError if another live process does.

    The first signal asks to stop at the next checkpoint, a second one ends the process at once.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.signum: int | None = None
        self._status: dict[str, Any] = {}
        self._written = -STATUS_EVERY
        self._patient = True

    def __enter__(self) -> "Session":
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.directory / LOCK)
        except OSError as error:
            raise UserError(f"{self.directory} cannot be written: {error.strerror}") from error
        on_main_thread = threading.current_thread() is threading.main_thread()
        self._handlers = {s: signal.signal(s, self._on_signal) for s in STOPPING} if on_main_thread else {}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler or signal.SIG_DFL)
        if error and self._status:
            self._write_end(error)
        os.close(self._lock)

    @property
    def resume(self) -> str:
        """The command that goes on with the run."""
        return f"rl-runner resume {shlex.quote(str(self.directory))}"

    def begin(self, step: int, total_steps: int) -> None:
        """From here on the status of the directory is this process's."""
        self._status = {
            "state": "running",
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "step": step,
            "total_steps": total_steps,
        }
        write_json(self.directory / STATUS, self._status)

    def note(self, step: int, row: Mapping[str, float]) -> None:
        """Take the latest figures of a row into the status."""
        tags = {"sps": "charts/SPS", "return": "charts/episodic_return", "evaluation": "eval/return_mean"}
        self._status |= {name: row[tag] for name, tag in tags.items() if tag in row}
        self.beat(step)

    def beat(self, step: int) -> None:
        """Say every few seconds where the run stands."""
        now = time.monotonic()
        if now - self._written < STATUS_EVERY:
            return
        self._written = now
        self._status |= {"step": step, "updated": time.time()}
        with suppress(OSError):  # a full disk; the checkpoint says so
            write_json(self.directory / STATUS, self._status, sync=False)

    def end(self, state: str, step: int) -> None:
        """The last word on a run."""
        write_json(self.directory / STATUS, self._status | {"state": state, "step": step, "updated": time.time()})

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Where everything is saved, a signal interrupts at once."""
        if self.signum:
            raise Interrupted(self.signum, self.resume)
        self._patient = False
        yield
        self._patient = True

    def _on_signal(self, signum: int, frame: object) -> None:
        for each in self._handlers:
            signal.signal(each, signal.SIG_DFL)
        self.signum = signum
        if not self._patient:
            raise Interrupted(signum, self.resume)

    def _write_end(self, error: BaseException) -> None:
        match error:
            case UserError():
                return
            case Interrupted() | KeyboardInterrupt():
                self._status["state"] = "interrupted"
            case RunFailed():
                self._status |= {"state": "failed", "error": str(error)}
            case _:
                self._status |= {"state": "failed", "error": one_line(error)}
        with suppress(OSError):  # the error itself says more
            write_json(self.directory / STATUS, self._status | {"updated": time.time()})


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
