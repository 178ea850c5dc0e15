"""An environment shares its process with the run: what it raises becomes one line, what it changes is put back."""

import os
import signal
import sys
import warnings
from _signal import getsignal  # the public one makes an enum of every answer, which takes longer than all the rest
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import are_deterministic_algorithms_enabled as deterministic
from torch.utils import _device as torch_device

from rl_runner.errors import Interrupted, RunFailed, UserError

SIGNALS = [getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")]

PROCESS = Path("/proc/self")  # of Linux alone

Setting = tuple[str, Callable[[], Any], Callable[[Any], Any]]  # what, how to read and to set it

_said: set[tuple[str, str]] = set()


def values_of(settings: tuple[Setting, ...]) -> list[Any]:
    return [read() for _, read, _ in settings]


def put_back(settings: tuple[Setting, ...], before: list[Any], culprit: str) -> None:
    """Set what is no longer as it was before, and say who changed it."""
    now = values_of(settings)
    if now == before:
        return
    for (what, _, put), old, new in zip(settings, before, now, strict=True):
        if old == new or (put is _set_handlers and _let_go(old, new)):
            continue
        with suppress(Exception):  # a directory that is gone
            put(old)
        if (culprit, what) not in _said:
            _said.add((culprit, what))
            print(f"warning: {culprit} changes {what}, which is not its own: put back", file=sys.stderr)


@contextmanager
def contained(culprit: str, told: Callable[[BaseException], Exception]) -> Iterator[None]:
    """Whatever the culprit's code raises becomes what is `told`, and the process is left as it was."""
    before = values_of(EVERY_SETTING)
    try:
        yield
    except BaseException as error:
        if passes(error):
            raise
        raise told(error) from error
    finally:
        put_back(EVERY_SETTING, before, culprit)


def passes(error: BaseException) -> bool:
    """Whether an exception that comes out of an environment's code is not the environment's own: ours, or Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):  # where a run handles the signal itself nobody else raises it
        return signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, (UserError, RunFailed, Interrupted))


def fork() -> int:
    """`os.fork`, when all that was printed is out, which the fork would say again."""
    with suppress(Exception):
        sys.stdout.flush()
    with warnings.catch_warnings():  # of threads that are not there in a fork: it needs none
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def one_line(error: BaseException) -> str:
    """An exception as `Type: message` without line breaks, in at most 500 characters."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # its __str__ is broken, too
        message = ""
    return f"{type(error).__name__}: {message}"[:500] if message else type(error).__name__


def _directory() -> str | None:
    with suppress(OSError):  # it was removed
        return os.getcwd()
    return None


def _set_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _handlers() -> list[Any]:
    return [getsignal(signum) for signum in SIGNALS]


def _set_handlers(handlers: list[Any]) -> None:
    for signum, handler in zip(SIGNALS, handlers, strict=True):
        if getsignal(signum) != handler:
            signal.signal(signum, handler)


def _let_go(before: list[Any], now: list[Any]) -> bool:
    """Whether a first signal made the run let go of all that it handles, so that a second one ends the process."""
    ours = [callable(handler) and handler is not signal.default_int_handler for handler in before]
    let_go = (signal.SIG_DFL, signal.SIG_IGN)
    return all(new in let_go if our else new == old for old, new, our in zip(before, now, ours, strict=True))


def _default_device() -> Any:
    return getattr(torch_device, "CURRENT_DEVICE", None)  # the public way takes longer than all the rest


def _errors() -> list[Any]:
    return [entry for entry in warnings.filters if entry[0] == "error"]


def _set_errors(errors: list[Any]) -> None:
    kept = [entry for entry in warnings.filters if entry[0] != "error" or entry in errors]
    warnings.resetwarnings()  # tells Python's own code that the list changes
    warnings.filters[:] = kept  # type: ignore[index]


CHEAP: tuple[Setting, ...] = (  # enough to be looked at around every step
    ("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    ("sys.stdout or sys.stderr", lambda: (sys.stdout, sys.stderr), _set_streams),
    ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),  # Dynamo raises it when it compiles
)
LASTING: tuple[Setting, ...] = (  # what the runner itself leaves alone while environments run
    ("the working directory", _directory, os.chdir),
    ("signal handlers", _handlers, _set_handlers),
    ("which warnings are errors", _errors, _set_errors),
    ("NumPy's handling of floating-point errors", np.geterr, lambda old: np.seterr(**old)),
    ("torch's default device", _default_device, torch.set_default_device),
    ("torch's precision of matrix products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ("torch's use of deterministic algorithms", deterministic, torch.use_deterministic_algorithms),
)
EVERY_SETTING = CHEAP + LASTING
