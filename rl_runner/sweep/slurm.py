"""Jobs on a SLURM cluster, submitted by submitit: one that is preempted, times out or is requeued goes on exactly."""

import shutil
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from rl_runner.errors import RunFailed, UserError
from rl_runner.persistence.session import held
from rl_runner.sweep.jobs import LOG, Job, content_hash

try:
    import submitit
except ModuleNotFoundError as missing:
    raise UserError("hydra/launcher=slurm needs submitit: pip install 'rl-runner[slurm]'") from missing

PATIENCE = 2.0  # seconds for which an answer of squeue holds
WITHOUT_END = 10_000  # times that a job may be requeued


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
        cores = max(map(int, _ask("sinfo", "--noheader", "--format=%c").replace("+", "").split()), default=threads)
        if threads > cores:
            raise UserError(f"threads={threads}: no node has more than {cores} cores; the jobs would wait for ever")
        self.n_jobs = n_jobs
        self._parameters = {
            "cpus_per_task": threads,
            "time": timeout_min,
            "partition": partition,
            "gpus_per_node": gpus_per_node,
            "mem": f"{mem_gb}GB" if mem_gb else None,
            "stderr_to_stdout": True,
            "additional_parameters": {"requeue": True, **options},
        }
        self._queue: set[str] = set()
        self._asked = -PATIENCE

    def start(self, job: Job) -> "Queued":
        """Submit a job, or take it over if an earlier command did."""
        name = f"rl_runner-{content_hash([str(job.directory.absolute())])}"
        earlier = _ask("squeue", "--me", "--noheader", f"--name={name}", "--format=%A").split()
        number = earlier[0] if earlier else self._submit(job, name)
        self._queue.add(number)
        return Queued(number, partial(self._in_queue, number))

    def _submit(self, job: Job, name: str) -> str:
        executor = submitit.SlurmExecutor(folder=job.directory.absolute() / "slurm", max_num_timeout=WITHOUT_END)
        executor.update_parameters(job_name=name, **self._parameters)
        try:
            submitted = executor.submit(Resumable(job.command(), job.directory.absolute()))
        except submitit.core.utils.FailedJobError as error:
            raise RunFailed(" ".join(str(error).split())) from error
        return str(submitted.job_id)

    def _in_queue(self, number: str) -> bool:
        if time.monotonic() - self._asked > PATIENCE:
            with suppress(RunFailed):  # a busy controller does not answer every time
                self._queue = set(_ask("squeue", "--me", "--noheader", "--format=%A").split())
            self._asked = time.monotonic()
        return number in self._queue


class Queued:
    """A job that SLURM knows, waiting, at work or about to be requeued."""

    def __init__(self, number: str, in_queue: Any):
        self._number, self._in_queue = number, in_queue

    def ended(self) -> str | None:
        return None if self._in_queue() else ""

    def stop(self) -> None:
        _ask("scancel", "--quiet", "--state=PENDING", self._number)
        _ask("scancel", "--quiet", "--signal=TERM", self._number)


class Resumable:
    """What runs on the node: the job's command, whose directory is all that a next attempt needs."""

    def __init__(self, command: list[str], directory: Path):
        self.command, self.directory = command, directory

    def __call__(self) -> int:
        with (self.directory / LOG).open("ab") as log:
            return subprocess.call(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """SLURM is about to take the node away, and has told the run, too: wait until it has saved."""
        while held(self.directory):
            time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(self)


def _ask(*command: str) -> str:
    """What a command of SLURM's prints; RunFailed if the cluster does not answer."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and command[0] != "scancel":  # whose job may just have ended
        raise RunFailed(" ".join(done.stderr.split()))
    return done.stdout
