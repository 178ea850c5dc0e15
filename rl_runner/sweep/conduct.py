"""A sweep from its validated jobs to the report, or on from where it stopped."""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rl_runner.config.schema import Config, load_config
from rl_runner.errors import RunFailed, UserError
from rl_runner.machine import num_threads
from rl_runner.persistence import durable
from rl_runner.persistence.session import LOCK, lock
from rl_runner.rundir import CONFIG, RESULT, SWEEP, read_json, write_json
from rl_runner.sweep.board import Board
from rl_runner.sweep.crew import Crew
from rl_runner.sweep.engine import Engine, engine
from rl_runner.sweep.jobs import LOG, Job, grid_identity, jobs_in, sweep_directory
from rl_runner.sweep.local import Local


def sweep(overrides: Sequence[Sequence[str]], configs: Sequence[Config], place: str, launcher: tuple[str, Any]) -> None:
    """Do every job that is not done yet, then write the report; RunFailed with all failures, if there are any.

    `overrides` and `configs`: of each job. `place`: the sweep's directory. `launcher`: its name and its config.
    """
    directory = sweep_directory(place, grid_identity(configs), fresh=configs[0].fresh)
    jobs = jobs_in(directory, overrides, configs)
    chosen = engine(*launcher, threads=threads_of(configs))
    if configs[0].dry_run:
        from rl_runner.sweep.plan import print_plan

        print_plan(jobs, directory, chosen.n_jobs)
        return
    with owned(directory):
        remember(directory, resumable=launcher[0] == "local")
        conduct(jobs, directory, chosen)


def remember(directory: Path, resumable: bool) -> None:
    """Write down the command; `resumable`: whether the jobs' directories alone are enough to go on with it."""
    write_json(directory / SWEEP, {"command": sys.argv[1:], "resumable": resumable})


def resume(directory: Path, overrides: Sequence[str]) -> None:
    """Go on with a sweep on this machine; overrides, such as total_steps, hold for every job."""
    made = read_json(directory / SWEEP)
    if not made.get("resumable"):
        raise UserError(f"to go on with {directory}, repeat its command: rl-runner {shlex.join(made['command'])}")
    with owned(directory):
        found = sorted(path.parent for path in directory.glob(f"*/{CONFIG}"))
        jobs = [Job(path.name, load_config(path / CONFIG, overrides), path) for path in found]
        conduct(jobs, directory, Local(threads=threads_of([job.config for job in jobs]), n_jobs=None))


def conduct(jobs: Sequence[Job], directory: Path, chosen: Engine) -> None:
    """Do the jobs and draw the conclusion."""
    todo = [job for job in jobs if not job.finished]
    print(f"{directory}: {len(jobs)} jobs, {len(jobs) - len(todo)} finished; {min(chosen.n_jobs, len(jobs))} at once")
    for job in todo:
        job.save()
    with Crew(chosen, Board()) as crew:
        crew.add(jobs)
        while crew.busy:
            crew.turn()
    conclude(directory, len(jobs), crew)


def conclude(directory: Path, num_jobs: int, crew: Crew) -> None:
    """Write the report, then name every failure."""
    if any(directory.glob(f"*/{RESULT}")):
        from rl_runner.report import summary, write_report

        page = write_report([directory], directory / "report")
        print(f"\n{summary([directory])}\n\nReport: {page}\nCurves: tensorboard --logdir {directory}", flush=True)
    if crew.failures:
        lines = [f"  {job.name}: {error}\n    {job.directory / LOG}" for job, error in crew.failures.items()]
        raise RunFailed("\n".join([f"\n{len(lines)} of {num_jobs} jobs failed:", *lines]))


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Sole ownership of a sweep's directory; UserError if another live process has it."""
    try:
        durable.make_directory(directory)
        descriptor = lock(directory / LOCK)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(descriptor)


def threads_of(configs: Sequence[Config]) -> int:
    """The threads that the greediest job takes."""
    return max(num_threads(config.threads) for config in configs)
