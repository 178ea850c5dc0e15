"""Evaluation beside training: a fork of the process plays the episodes, with all as it is at that step."""

import json
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from rl_runner.envs.process import SIGNALS, one_line
from rl_runner.errors import RunFailed, Told
from rl_runner.machine import num_cores

Wanted = Literal["auto", "separate", "same"]
PROCESS = Path("/proc/self")


def holdings() -> set[str]:
    """What a fork of this process would share or lack: open files, threads, other processes."""
    held = set()
    for place in (*_listed(PROCESS / "fd"), *_listed(PROCESS / "task")):
        with suppress(OSError):  # it was closed, or has ended, since it was listed
            if place.parent.name == "fd":
                held.add(f"{place.name} {os.readlink(place)}")
            else:
                held |= {place.name, *(place / "children").read_text().split()}
    return held


def choose(wanted: Wanted, device: torch.device, held: bool) -> tuple[bool, str]:
    """Whether evaluations are played beside training, and why, from config, machine and environment alone."""
    if wanted == "same":
        obstacle = "as configured"
    elif not PROCESS.exists():
        obstacle = "only Linux can play them beside it"
    elif device.type != "cpu" or torch.get_num_threads() > 1:
        obstacle = "a fork takes neither a GPU nor several threads along"
    elif held:
        obstacle = "the environment holds files, threads or processes"
    elif wanted == "auto" and num_cores() < 2:
        obstacle = "there is no second core"
    else:
        return True, "beside training"
    return False, f"between steps of training ({obstacle})"


class Beside:
    """An answer that a fork of this process works out; JSON must be able to hold it. OSError if it cannot be forked.

    `take`: what this process makes of it.
    """

    def __init__(self, work: Callable[[], Any], take: Callable[[Any], Any]):
        self._take = take
        self._reader, writer = os.pipe()
        with suppress(Exception):
            sys.stdout.flush()  # or the fork would say it again
        with warnings.catch_warnings():  # of threads that are not there in a fork: it needs none
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                self._pid = os.fork()
            except OSError:
                os.close(self._reader)
                os.close(writer)
                raise
        if self._pid == 0:
            _answer(work, writer)
        os.close(writer)

    @property
    def ready(self) -> bool:
        """Whether `result` need not wait."""
        return "result" in vars(self) or bool(select.select([self._reader], [], [], 0)[0])

    @cached_property
    def result(self) -> Any:
        """What was made of the answer, for which this waits; RunFailed if there is none."""
        with os.fdopen(self._reader, "rb") as file:
            said = file.read()
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if not said:
            raise RunFailed(f"the process that evaluated has ended (exit code {code}): eval_process=same needs none")
        answer, error = json.loads(said)
        if error:
            raise RunFailed(error)
        return self._take(answer)


def _answer(work: Callable[[], Any], writer: int) -> NoReturn:
    """In the fork: write the answer, or what went wrong, and end without any of the parent's farewells."""
    try:
        for signum in SIGNALS:  # are for the parent, which waits for the answer before it saves
            signal.signal(signum, signal.SIG_IGN)
        answer, problem = None, None
        try:
            answer = work()
        except BaseException as error:
            problem = str(error) if isinstance(error, Told) else one_line(error)
        with suppress(OSError), os.fdopen(writer, "wb") as file:  # a parent that was killed
            file.write(json.dumps([answer, problem]).encode())
        with suppress(Exception):
            sys.stdout.flush()
    finally:
        os._exit(0)


def _listed(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.exists() else []
