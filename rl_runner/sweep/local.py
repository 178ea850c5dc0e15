"""Jobs as processes of their own on this machine: whatever happens to one happens to it alone."""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress

from pydantic import PositiveInt

from rl_runner.sweep.jobs import LOG, Job

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Local:
    """`n_jobs` processes at once; null: as many as there are cores for their threads."""

    def __init__(self, *, threads: int, n_jobs: PositiveInt | None):
        self.n_jobs = n_jobs or max(1, cores() // threads)
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}

    def start(self, job: Job) -> "Process":
        with (job.directory / LOG).open("ab") as log:
            return Process(
                subprocess.Popen(
                    job.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on once
                    preexec_fn=_end_with_parent,
                )
            )


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Process:
    """A job's process."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process

    def ended(self) -> str | None:
        return None if (code := self._process.poll()) is None else in_words(code)

    def stop(self, signum: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signum)


def in_words(code: int) -> str:
    """How a process ended, from its exit code; negative for a signal."""
    if code >= 0:
        return f"exit code {code}" if code else ""
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """If the sweep itself is killed, its jobs save and end instead of going on unseen."""
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
