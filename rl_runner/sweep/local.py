"""Jobs as processes of their own on this machine: whatever happens to one happens to it alone."""

import ctypes
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from pydantic import PositiveInt

from rl_runner.sweep.jobs import LOG, Job

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LARGEST_LOG, END_OF_LOG = 100_000_000, 1_000_000  # bytes


class Local:
    """`n_jobs` processes at once; null: as many as there are cores for their threads.

    A job that leaves the choice of its GPU open gets the one with the fewest jobs, and sees no other.
    """

    def __init__(self, *, threads: int, n_jobs: PositiveInt | None):
        self.n_jobs = n_jobs or max(1, cores() // threads)
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self._gpus = gpus()
        self._started: list[Process] = []

    def start(self, job: Job) -> "Process":
        self._started = [process for process in self._started if process.ended() is None]
        gpu = self._gpu_for(job)
        with (job.directory / LOG).open("ab") as log:
            process = subprocess.Popen(
                job.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on once
                preexec_fn=end_with_parent,
            )
        self._started.append(Process(process, job.directory / LOG, gpu))
        return self._started[-1]

    def _gpu_for(self, job: Job) -> str | None:
        if job.config.device not in ("auto", "cuda") or len(self._gpus) < 2:
            return None
        taken = Counter(process.gpu for process in self._started)
        return min(self._gpus, key=taken.__getitem__)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """The GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    if not count or not (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
        return [str(number) for number in range(count)]
    names = [name.strip() for name in visible.split(",")]
    return names if names[0].startswith("MIG-") else names[:count]  # of several MIG devices CUDA counts the first


class Process:
    """A job's process, with the file that takes its output, and the one GPU that it sees."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, gpu: str | None):
        self._process, self._log, self.gpu = process, log, gpu
        self._told = False

    def ended(self) -> str | None:
        shorten(self._log)
        return None if (code := self._process.poll()) is None else in_words(code)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL if self._told else signal.SIGTERM)
        self._told = True


def shorten(log: Path) -> None:
    """Keep the end alone of a log that grows without end; its writer appends, wherever that is."""
    with suppress(OSError):
        if log.stat().st_size <= LARGEST_LOG:
            return
        with log.open("r+b") as file:
            file.seek(-END_OF_LOG, os.SEEK_END)
            end = file.read()
            file.seek(0)
            file.write(end)
            file.truncate()


def in_words(code: int) -> str:
    """How a process ended, from its exit code; negative for a signal."""
    if code >= 0:
        return f"exit code {code}" if code else ""
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{hint}"


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """If what started a job is killed, the job saves and ends instead of going on unseen."""
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
