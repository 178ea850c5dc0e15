"""What a launcher has to offer: it starts a job somewhere, and can tell whether it is still at work."""

from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol

from rl_runner.config.targets import factory, read_group
from rl_runner.errors import UserError
from rl_runner.sweep.jobs import Job

PACKAGE = "rl_runner.sweep."


class Worker(Protocol):
    """A job that was started."""

    def ended(self) -> str | None:
        """None as long as it is at work; then how it ended, in words, or "" for nothing to complain of."""

    def stop(self) -> None:
        """Let it save and end; a second time without saving."""


class Engine(Protocol):
    """Where jobs run."""

    n_jobs: int  # at once

    def start(self, job: Job) -> Worker: ...


def engine(name: str, group: dict[str, Any], threads: int) -> Engine:
    """The engine that `hydra/launcher=name` describes, for jobs of so many threads; UserError if there is none."""
    target = str(group.get("_target_"))
    if not target.startswith(PACKAGE):
        raise UserError(f"hydra/launcher={name}: a sweep runs on hydra/launcher=local, slurm or ray")
    with suppress(ModuleNotFoundError):  # which is said below
        import_module(target.rpartition(".")[0])  # a module says itself which extra it misses
    read = read_group("hydra.launcher", group, [])
    if read.problems:
        raise UserError("\n".join(read.problems))
    built: Engine = factory("hydra.launcher", read.values)(threads=threads)
    return built
