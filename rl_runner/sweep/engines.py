"""Where jobs run: processes of this machine, a SLURM or a Ray cluster; wherever one is stopped, it goes on exactly."""

import ctypes
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from rl_runner.errors import RunFailed, UserError
from rl_runner.machine import CORES, num_cores
from rl_runner.persistence.session import owner_of
from rl_runner.sweep.jobs import LOG, Job, content_hash

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LARGEST_LOG, END_OF_LOG = 100_000_000, 1_000_000  # bytes
PATIENCE = 2.0  # seconds for which an answer of squeue holds
WARNING = 90  # seconds before a job's time is over, in which it saves

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Engine(Protocol):
    """Runs jobs, `n_jobs` at once; its constructor takes `threads`, those of the greediest job."""

    n_jobs: int

    def start(self, job: Job) -> Any:
        """What stands for the job from now on."""

    def ended(self, started: Any) -> str | None:
        """None as long as it is at work; then how it ended, in words, or "" for nothing to complain of."""

    def stop(self, started: Any) -> None:
        """Let it save and end; a second time without saving."""


@dataclass
class Process:
    """A job's process, with the file that takes its output, and the one GPU that it sees."""

    process: subprocess.Popen[bytes]
    log: Path
    gpu: str | None
    told: bool = False  # to stop


class Local:
    """`n_jobs` processes at once; null: as many as there are cores for their threads.

    A job that leaves the choice of its GPU open gets the one with the fewest jobs, and sees no other.
    """

    def __init__(self, *, threads: int, n_jobs: PositiveInt | None):
        cores = num_cores()
        self.n_jobs = n_jobs or max(1, cores // threads)
        self._environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
        self._environment[CORES] = str(max(1, cores // self.n_jobs))
        self._gpus = gpus()
        self._started: list[Process] = []

    def start(self, job: Job) -> Process:
        self._started = [started for started in self._started if started.process.poll() is None]
        chosen, environment = None, self._environment
        if job.config.device in ("auto", "cuda") and len(self._gpus) > 1:
            taken = Counter(started.gpu for started in self._started)
            chosen = min(self._gpus, key=taken.__getitem__)
            environment = environment | {"CUDA_VISIBLE_DEVICES": chosen}
        log = job.directory / LOG
        self._started.append(Process(begin(job.command(), log, environment), log, chosen))
        return self._started[-1]

    def ended(self, started: Process) -> str | None:
        shorten(started.log)
        return None if (code := started.process.poll()) is None else in_words(code)

    def stop(self, started: Process) -> None:
        with suppress(ProcessLookupError):
            started.process.send_signal(signal.SIGKILL if started.told else signal.SIGTERM)
        started.told = True


def gpus() -> list[str]:
    """The GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    if not count or not (visible := os.environ.get("CUDA_VISIBLE_DEVICES")):
        return [str(number) for number in range(count)]
    names = [name.strip() for name in visible.split(",")]
    return names if names[0].startswith("MIG-") else names[:count]  # of several MIG devices CUDA counts the first


def begin(command: list[str], log: Path, environment: dict[str, str], cwd: str = ".") -> subprocess.Popen[bytes]:
    """Start a job's process, whose output goes to the end of its log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which passes it on once
            preexec_fn=end_with_parent,
        )  # fmt: skip


def end_with_parent() -> None:
    """If what started a job is killed, the job saves and ends instead of going on unseen."""
    if _libc:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def shorten(log: Path) -> None:
    """Keep the end alone of a log that grows without end; its writer appends, wherever that is."""
    with suppress(OSError), log.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > LARGEST_LOG:
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


class Slurm:
    """`n_jobs` in the queue at once; `options`: any others of sbatch, by their long names."""

    def __init__(
        self,
        *,
        threads: int,
        n_jobs: PositiveInt,
        partition: str | None,
        timeout_min: PositiveInt,
        gpus_per_node: NonNegativeInt | None,
        mem_gb: PositiveFloat | None,
        options: dict[str, Any],
    ):
        if not shutil.which("sbatch"):
            raise UserError("hydra/launcher=slurm: there is no sbatch here; start the sweep on a machine that submits")
        cores = max(map(int, ask("sinfo", "--noheader", "--format=%c").replace("+", "").split()), default=threads)
        if threads > cores:
            raise UserError(f"threads={threads}: no node has more than {cores} cores; the jobs would wait for ever")
        self.n_jobs, self._threads = n_jobs, threads
        chosen: dict[str, Any] = {"partition": partition, "time": timeout_min, "gpus_per_node": gpus_per_node}
        chosen |= {"mem": mem_gb and f"{mem_gb * 1024:.0f}M", "requeue": True, "open_mode": "append"}
        chosen |= {"signal": f"USR2@{WARNING}"}
        self._options = [
            f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
            for key, value in (chosen | options).items()
            if value is not None and value is not False
        ]
        self._queue: set[str] = set()
        self._asked = -PATIENCE

    def start(self, job: Job) -> str:
        """Submit a job, or take it over if an earlier command did; its number."""
        place, cores = job.directory.absolute(), f"--cpus-per-task={self._threads}"
        name = f"rl_runner-{content_hash([str(place)])}"
        number = ask("squeue", "--me", "--noheader", f"--name={name}", "--format=%A").partition("\n")[0]
        if not number:
            own, log = (f"--output={place / file}".replace("%", "%%") for file in ("slurm.txt", LOG))
            words = ["sbatch", "--parsable", f"--job-name={name}", own, cores, *self._options]
            # SLURM warns a job by SIGUSR2 before it takes the node away: then all is saved, and it queues again.
            script = "#!/bin/sh\n" + shlex.join(["srun", log, "--open-mode=append", cores, *job.command()])
            script += f"\n[ $? -ne {128 + signal.SIGUSR2} ] || scontrol requeue $SLURM_JOB_ID\n"
            number = ask(*words, standard_input=script).strip().partition(";")[0]
        self._queue.add(number)
        return number

    def ended(self, started: str) -> str | None:
        if time.monotonic() - self._asked > PATIENCE:
            with suppress(RunFailed):  # a busy controller does not answer every time
                self._queue = set(ask("squeue", "--me", "--noheader", "--format=%A").split())
            self._asked = time.monotonic()
        return None if started in self._queue else ""  # there it waits, is at work or about to be requeued

    def stop(self, started: str) -> None:
        ask("scancel", "--quiet", "--state=PENDING", started)
        ask("scancel", "--quiet", "--signal=TERM", started)


def ask(*command: str, standard_input: str = "") -> str:
    """What a command of SLURM's prints; RunFailed if the cluster does not answer."""
    done = subprocess.run(command, input=standard_input, capture_output=True, text=True)
    if done.returncode and command[0] != "scancel":  # whose job may just have ended
        raise RunFailed(" ".join(done.stderr.split()))
    return done.stdout


class Ray:
    """`n_jobs` with Ray at once, which starts them as cores become free; `address` null: a cluster of this machine."""

    def __init__(self, *, threads: int, n_jobs: PositiveInt, address: str | None, num_gpus: NonNegativeFloat):
        self.n_jobs = n_jobs
        try:
            self._ray: Any = import_module("ray")
            self._ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ModuleNotFoundError as error:
            raise UserError("hydra/launcher=ray needs ray: pip install 'rl-runner[ray]'") from error
        except ConnectionError as error:
            raise UserError(f"hydra.launcher.address={address}: {' '.join(str(error).split())}") from error
        self._work = self._ray.remote(num_cpus=threads, num_gpus=num_gpus, max_retries=-1)(work)

    def start(self, job: Job) -> Any:
        """Ray's reference to what will be the job's exit code."""
        return self._work.remote(job.command(), job.directory.absolute(), os.getcwd())

    def ended(self, started: Any) -> str | None:
        ready, _ = self._ray.wait([started], timeout=0)
        if not ready:
            return None
        try:
            return in_words(self._ray.get(started))
        except self._ray.exceptions.RayError as error:
            return type(error).__name__

    def stop(self, started: Any) -> None:
        self._ray.cancel(started)


def work(command: list[str], job: Path, directory: str) -> int:
    """Run a job's command on whatever node this is, with the GPUs that Ray has given it; its exit code."""
    while owner_of(job):  # an earlier attempt, whose worker has died, saves and ends
        time.sleep(0.2)
    visible = ",".join(map(str, import_module("ray").get_gpu_ids()))
    cores = os.environ.get("OMP_NUM_THREADS", "1")  # as many as Ray has given it
    process = begin(command, job / LOG, {"CUDA_VISIBLE_DEVICES": visible, CORES: cores}, cwd=directory)
    while process.poll() is None:
        try:
            time.sleep(0.2)
        except KeyboardInterrupt:  # it was cancelled
            process.send_signal(signal.SIGTERM)
    return process.returncode
