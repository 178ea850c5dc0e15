"""Jobs on a Ray cluster whose nodes share a file system; one whose node is lost goes on exactly elsewhere."""

import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, PositiveInt

from rl_runner.errors import UserError
from rl_runner.persistence.session import held
from rl_runner.sweep.jobs import LOG, Job
from rl_runner.sweep.local import end_with_parent, in_words

try:
    import ray
except ModuleNotFoundError as missing:
    raise UserError("hydra/launcher=ray needs ray: pip install 'rl-runner[ray]'") from missing


class Ray:
    """`n_jobs` with Ray at once, which starts them as cores become free; `address` null: a cluster of this machine."""

    def __init__(self, *, threads: int, n_jobs: PositiveInt, address: str | None, num_gpus: NonNegativeFloat):
        self.n_jobs = n_jobs
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise UserError(f"hydra.launcher.address={address}: {' '.join(str(error).split())}") from error
        self._work = ray.remote(num_cpus=threads, num_gpus=num_gpus, max_retries=-1)(work)

    def start(self, job: Job) -> "Task":
        return Task(self._work.remote(job.command(), job.directory.absolute(), os.getcwd()))


class Task:
    """A job that Ray has taken."""

    def __init__(self, reference: Any):
        self._reference = reference

    def ended(self) -> str | None:
        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return in_words(ray.get(self._reference))
        except ray.exceptions.RayError as error:
            return type(error).__name__

    def stop(self) -> None:
        ray.cancel(self._reference)


def work(command: list[str], job: Path, directory: str) -> int:
    """Run a job's command on whatever node this is, with the GPUs that Ray has given it; its exit code."""
    while held(job):  # an earlier attempt, whose worker has died, saves and ends
        time.sleep(0.2)
    visible = ",".join(map(str, ray.get_gpu_ids()))
    with (job / LOG).open("ab") as output:
        process = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": visible}, start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
    while process.poll() is None:
        try:
            time.sleep(0.2)
        except KeyboardInterrupt:  # it was cancelled
            process.send_signal(signal.SIGTERM)
    return process.returncode
