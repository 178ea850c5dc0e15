"""Environments in processes of their own: forks, each of which plays one and answers through a pipe.

They are `SeededEnv`s like any other, so that numbers and checkpoints are the same. The workers of Gymnasium's
`AsyncVectorEnv` cannot play one environment's episode again, nor tell which has failed and what its process came to.
"""

import ctypes
import os
import random
import signal
import sys
import time
import weakref
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import numpy as np
import torch

from rl_runner.config.schema import EnvConfig
from rl_runner.envs.process import PROCESS, SIGNALS, fork, one_line
from rl_runner.envs.seeded import SeededEnv
from rl_runner.errors import RunFailed, Told, UserError
from rl_runner.seeding import derive

LOOK_EVERY = 1.0  # seconds without an answer, after which a process is looked for
PATIENCE = 5.0  # seconds that a process has to close its environment
PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends
NOTHING = (0, 0, 0.0, False)  # of episode, length, return and whether it goes on


class RemoteEnv:
    """A `SeededEnv` in a process of its own, which ends with this object, or with this process."""

    def __init__(self, config: EnvConfig, stream: tuple[int, str, int], rebuild: bool = False):
        self.config, self._stream, home = config, stream, os.getpid()
        self.episode, self.length, self.total, self.playing = NOTHING
        try:
            self._pipe, theirs = Pipe()
            self._pid = fork()
        except OSError as error:
            raise UserError(
                f"vectorization=async: no process for environment {stream[2]} ({error.strerror}): use fewer num_envs, "
                "or vectorization=sync"
            ) from error
        if self._pid == 0:
            _work(theirs, home, config, stream, rebuild)
        theirs.close()
        weakref.finalize(self, _end, self._pipe, self._pid, home)
        self.ask("described")

    __str__: Any = SeededEnv.__str__

    def ask(self, method: str, *given: Any) -> None:
        """Let it begin with what the method of that name here will return."""
        self._asked = True
        with suppress(OSError):  # it has ended, as the answer will say
            self._pipe.send((method, given))

    def described(self) -> Any:
        return self._answer("described")

    def reset(self, episode: int) -> Any:
        return self._answer("reset", episode)

    def step(self, action: Any) -> Any:
        return self._answer("step", action)

    def replay(self, episode: int, actions: np.ndarray) -> Any:
        return self._answer("replay", episode, actions)

    def _answer(self, method: str, *given: Any) -> Any:
        """What the method returned; UserError or RunFailed as it raised it, RunFailed if the process has ended."""
        if not self._asked:
            self.ask(method, *given)
        self._asked, how = False, None
        try:
            while not self._pipe.poll(LOOK_EVERY):  # processes of the environment's own may hold the pipe open
                if how := _fate(self._pid):
                    raise EOFError
            error, result, (self.episode, self.length, self.total, self.playing) = self._pipe.recv()
        except (EOFError, OSError) as gone:
            raise RunFailed(
                f"the process of {self} has ended ({how or _awaited(self._pid)}): rl-runner resume DIR goes on from "
                "the last checkpoint, and in one process with vectorization=sync"
            ) from gone
        if error:
            raise error
        return result

    @property
    def holdings(self) -> set[str]:
        """The pipe and the process, as `beside` lists what a process holds."""
        number = str(self._pipe.fileno())
        return {str(self._pid), f"{number} {os.readlink(PROCESS / 'fd' / number)}"} if PROCESS.exists() else set()


def _work(pipe: Connection, home: int, config: EnvConfig, stream: tuple[int, str, int], rebuild: bool) -> NoReturn:
    """In the fork: make the environment when first asked, and do what is asked until there is nobody to ask."""
    env: SeededEnv | None = None
    try:
        for signum in SIGNALS:  # are for the parent; if they were ignored, so they would be by programs started here
            signal.signal(signum, lambda *_: None)
        if sys.platform == "linux":  # elsewhere the pipe tells, once the environment has made its step
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        seed = derive(*stream, 0)  # of the streams that only careless environments draw from, the same in all forks
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        while os.getppid() == home and (asked := pipe.recv()):
            method, given = asked
            error, result = None, None
            try:
                env = env or SeededEnv(config, stream, rebuild)
                result = getattr(env, method)(*given)
            except BaseException as problem:
                error = problem if isinstance(problem, Told) else RunFailed(one_line(problem))
            pipe.send((error, result, (env.episode, env.length, env.total, env.playing) if env else NOTHING))
    finally:
        with suppress(BaseException):
            if env:
                env.env.close()
            sys.stdout.flush()
        os._exit(0)


def _end(pipe: Connection, pid: int, home: int) -> None:
    if os.getpid() == home:  # and not in a fork that evaluates
        with suppress(OSError):
            pipe.send(None)
        pipe.close()
        _awaited(pid)


def _awaited(pid: int) -> str:
    """How a process has ended, which it does now if it has not."""
    late = time.monotonic() + PATIENCE
    while not (how := _fate(pid)):
        if time.monotonic() > late:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return how


def _fate(pid: int) -> str | None:
    """How a process has ended, if it has."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # somebody else has waited for it
        return "nobody knows how"
    code = os.waitstatus_to_exitcode(status)
    killed = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return (f"exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}{killed}") if ended else None
