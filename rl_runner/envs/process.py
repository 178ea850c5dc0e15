"""An environment shares its process with the run: what it raises becomes one line, what it changes is put back."""

import os
import signal
import sys
import warnings
from _signal import getsignal  # the public one makes an enum of every answer, which takes longer than all the rest
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _device as torch_device

from rl_runner.errors import Interrupted, RunFailed, UserError

SIGNALS = [getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")]

_said: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Shared:
    """Things that all code of a process shares: how to read them all, and for each what it is and how to set it."""

    read: Callable[[], tuple[Any, ...]]
    things: tuple[tuple[str, Callable[[Any], Any]], ...]

    def put_back(self, before: tuple[Any, ...], culprit: str) -> None:
        """Set what is no longer as it was before, and say who changed it."""
        now = self.read()
        if now == before:
            return
        for (what, put), old, new in zip(self.things, before, now, strict=True):
            if old == new:
                continue
            with suppress(Exception):  # a directory that is gone
                put(old)
            if (culprit, what) not in _said:
                _said.add((culprit, what))
                print(f"warning: {culprit} changes {what}, which is not its own: put back", file=sys.stderr)


@contextmanager
def contained(culprit: str, told: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Whatever the culprit's code raises becomes what is `told`, and the process is left as it was."""
    before = [(shared, shared.read()) for shared in (CHEAP, LASTING)]
    try:
        yield
    except BaseException as error:
        if passes(error):
            raise
        raise told(error) from error
    finally:
        for shared, state in before:
            shared.put_back(state, culprit)


def passes(error: BaseException) -> bool:
    """Whether an exception that comes out of an environment's code is not the environment's own: ours, or Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):  # where a run handles the signal itself nobody else raises it
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, (UserError, RunFailed, Interrupted))


def one_line(error: BaseException) -> str:
    """An exception as `Type: message` without line breaks, in at most 500 characters."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # its __str__ is broken, too
        message = ""
    return f"{type(error).__name__}: {message}"[:500] if message else type(error).__name__


def glance() -> tuple[Any, ...]:
    """What is cheap enough to be read around every step."""
    streams, limit = (sys.stdout, sys.stderr), sys.getrecursionlimit()  # which Dynamo raises when it compiles
    return (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), streams, limit)


def _read() -> tuple[Any, ...]:
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        directory = None
    return (
        directory,
        [getsignal(signum) for signum in SIGNALS],
        [entry for entry in warnings.filters if entry[0] == "error"],
        np.geterr(),
        getattr(torch_device, "CURRENT_DEVICE", None),  # the public way takes longer than all the rest
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


def _set_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _set_handlers(handlers: list[Any]) -> None:
    now = [getsignal(signum) for signum in SIGNALS]
    # A first signal lets go of all that the run handles, so that a second one ends the process: none of our business.
    if now == [signal.SIG_DFL if callable(handler) else handler for handler in handlers]:
        return
    for signum, handler, new in zip(SIGNALS, handlers, now, strict=True):
        if new != handler:
            signal.signal(signum, handler)


def _set_errors(errors: list[Any]) -> None:
    kept = [entry for entry in warnings.filters if entry[0] != "error" or entry in errors]
    warnings.resetwarnings()  # tells Python's own code that the list changes
    warnings.filters[:] = kept  # type: ignore[index]


CHEAP = Shared(
    glance,
    (
        ("torch's grad mode", torch.set_grad_enabled),
        ("torch's default dtype", torch.set_default_dtype),
        ("torch's number of threads", torch.set_num_threads),
        ("sys.stdout or sys.stderr", _set_streams),
        ("the recursion limit", sys.setrecursionlimit),
    ),
)
# What the runner itself leaves alone while environments run.
LASTING = Shared(
    _read,
    (
        ("the working directory", os.chdir),
        ("signal handlers", _set_handlers),
        ("which warnings are errors", _set_errors),
        ("NumPy's handling of floating-point errors", lambda old: np.seterr(**old)),
        ("torch's default device", torch.set_default_device),
        ("torch's precision of matrix products", torch.set_float32_matmul_precision),
        ("torch's use of deterministic algorithms", torch.use_deterministic_algorithms),
    ),
)
