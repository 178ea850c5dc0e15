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
    conduct(jobs, directory, chosen, sys.argv[1:], resumable=launcher[0] == "local")


def remember(directory: Path, command: Sequence[str], resumable: bool) -> None:
    """Write down the command; `resumable`: whether the jobs' directories alone are enough to go on with it."""
    write_json(directory / SWEEP, {"command": list(command), "resumable": resumable})


def resume(directory: Path, overrides: Sequence[str]) -> None:
    """Go on with a sweep on this machine; overrides, such as total_steps, hold for every job."""
    made = read_json(directory / SWEEP)
    command = made.get("command")
    if not isinstance(command, list):
        raise UserError(f"{directory / SWEEP} is damaged: repeat the sweep's command, or resume its jobs one by one")
    found = sorted(path.parent for path in directory.glob(f"*/{CONFIG}"))
    if made.get("resumable") is not True or not found:
        raise UserError(f"to go on with {directory}, repeat its command: rl-runner {shlex.join(map(str, command))}")
    jobs = [Job(path.name, load_config(path / CONFIG, overrides), path) for path in found]
    conduct(jobs, directory, Local(threads=threads_of([job.config for job in jobs]), n_jobs=None), command, True)


def conduct(jobs: Sequence[Job], directory: Path, chosen: Engine, command: Sequence[str], resumable: bool) -> None:
    """Do the jobs and draw the conclusion; or say what would be done."""
    from rl_runner.sweep.plan import print_plan, without_updates

    if jobs[0].config.dry_run:
        print_plan(jobs, directory, chosen.n_jobs)
        return
    with owned(directory):
        todo = [job for job in jobs if not job.finished]
        done, at_once = len(jobs) - len(todo), min(chosen.n_jobs, len(jobs))
        lines = without_updates([job.config for job in jobs], "jobs")
        print(f"{directory}: {len(jobs)} jobs, {done} finished; {at_once} at once", *lines, sep="\n", flush=True)
        for job in todo:
            job.save()
        remember(directory, command, resumable)  # last: whoever goes on by the directories alone finds all of them
        with Crew(chosen, Board()) as crew:
            crew.add(jobs)
            while crew.busy:
                crew.turn()
        conclude(directory, len(jobs), crew)


def conclude(directory: Path, num_jobs: int, crew: Crew) -> None:
    """Write the report, then name every failure."""
    lines = [f"  {job.name}: {error}\n    {job.directory / LOG}" for job, error in crew.failures.items()]
    lines = [f"\n{len(lines)} of {num_jobs} jobs failed:", *lines] if lines else []
    if any(directory.glob(f"*/{RESULT}")):
        from rl_runner.report import summary, write_report

        try:
            page = write_report([directory], directory / "report")
            curves = f"tensorboard --logdir {shlex.quote(str(directory))}"
            print(f"\n{summary([directory])}\n\nReport: {page}\nCurves: {curves}", flush=True)
        except (OSError, UserError, ValueError) as error:
            lines.append(f"\nthere is no report: {error}")
    if lines:
        raise RunFailed("\n".join(lines))


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Sole ownership of a sweep's directory; UserError if another live process has it, RunFailed on a full disk."""
    try:
        durable.make_directory(directory)
        descriptor = lock(directory / LOCK)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error.strerror}") from error
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{error.filename or directory}: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def threads_of(configs: Sequence[Config]) -> int:
    """The threads that the greediest job takes."""
    return max(num_threads(config.threads) for config in configs)
