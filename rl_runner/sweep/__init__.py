"""Sweeps: many runs, each a directory that any process may go on with, from one command to one report."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rl_runner.config.schema import Config, load_config
from rl_runner.config.targets import factory, read_group
from rl_runner.errors import RunFailed, UserError
from rl_runner.machine import num_threads
from rl_runner.persistence import CONFIG, RESULT, SWEEP, read_json, write_json
from rl_runner.persistence.session import own
from rl_runner.sweep.crew import Crew, crew_of
from rl_runner.sweep.engines import Engine, Local
from rl_runner.sweep.jobs import LOG, Job, grid_identity, jobs_in, print_plan, sweep_directory, without_updates


def sweep(overrides: Sequence[Sequence[str]], configs: Sequence[Config], hydra: Any) -> None:
    """Do every job that is not done yet, then write the report; RunFailed with all failures, if there are any.

    `overrides` and `configs`: of each job. `hydra`: Hydra's own config, for the directory and the launcher.
    """
    directory = sweep_directory(hydra.sweep.dir, grid_identity(configs), fresh=configs[0].fresh)
    conduct(jobs_in(directory, overrides, configs), directory, engine_of(hydra, configs), sys.argv[1:])


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
    conduct(jobs, directory, Local(threads=threads_of([job.config for job in jobs]), n_jobs=None), command)


def engine_of(hydra: Any, configs: Sequence[Config]) -> Engine:
    """The engine that `hydra/launcher` names, for jobs of these configs; UserError if it is none, or not sound."""
    group: Any = OmegaConf.to_container(hydra.launcher, resolve=True)
    if not str(group.get("_target_")).startswith("rl_runner.sweep."):
        name = hydra.runtime.choices["hydra/launcher"]
        raise UserError(f"hydra/launcher={name}: a sweep runs on hydra/launcher=local, slurm or ray")
    read = read_group("hydra.launcher", group, [])
    if read.problems:
        raise UserError("\n".join(read.problems))
    engine: Engine = factory("hydra.launcher", read.values)(threads=threads_of(configs))
    return engine


def threads_of(configs: Sequence[Config]) -> int:
    """The threads that the greediest job takes."""
    return max(num_threads(config.threads) for config in configs)


def conduct(jobs: Sequence[Job], directory: Path, engine: Engine, command: Sequence[str]) -> None:
    """Do the jobs and draw the conclusion; or say what would be done."""
    if jobs[0].config.dry_run:
        print_plan(jobs, directory, engine.n_jobs)
        return
    with owned(directory):
        todo = [job for job in jobs if not job.finished]
        done, at_once = len(jobs) - len(todo), min(engine.n_jobs, len(jobs))
        lines = without_updates([job.config for job in jobs], "jobs")
        print(f"{directory}: {len(jobs)} jobs, {done} finished; {at_once} at once", *lines, sep="\n", flush=True)
        for job in todo:
            job.save()
        # Last: whoever goes on by the directories alone, as this machine can, finds all of them.
        write_json(directory / SWEEP, {"command": list(command), "resumable": isinstance(engine, Local)})
        with crew_of(engine) as crew:
            crew.finish(jobs)
        conclude(directory, len(jobs), crew)


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Sole ownership of a sweep's directory; UserError if another live process has it, RunFailed on a full disk."""
    with own(directory):
        try:
            yield
        except OSError as error:
            raise RunFailed(f"{error.filename or directory}: {error.strerror or error}") from error


def conclude(directory: Path, num_jobs: int, crew: Crew) -> None:
    """Write the report, then name every failure."""
    lines = [f"  {job.name}: {error}\n    {job.directory / LOG}" for job, error in crew.failures.items()]
    lines = [f"\n{len(lines)} of {num_jobs} jobs failed:", *lines] if lines else []
    if any(directory.glob(f"*/{RESULT}")):
        from rl_runner.report import Findings, as_text, write

        try:
            findings = Findings([directory])
            page = write(findings, directory / "report")
            curves = f"tensorboard --logdir {shlex.quote(str(directory))}"
            print(f"\n{as_text(findings)}\n\nReport: {page}\nCurves: {curves}", flush=True)
        except (OSError, UserError, ValueError) as error:
            lines.append(f"\nthere is no report: {error}")
    if lines:
        raise RunFailed("\n".join(lines))
