"""The standard streams: what is said to people can neither end nor relabel a run, and libraries can be silenced."""

import codecs
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

PLAIN = {"±": "+-", "×": "x", "−": "-", "–": "-", "·": "-", "…": "..."}  # where the encoding has no such letter


class Unfailing(io.FileIO):
    """A standard stream's descriptor: what a closed pipe, a full disk or a lost terminal does not take is dropped."""

    def write(self, content: Any) -> int:
        while True:
            try:
                if (written := super().write(content)) is not None:
                    return written
                select.select([], [self], [])  # another process has made the terminal non-blocking
            except BrokenPipeError:  # nobody will ever read this, and what an environment starts must not die of it
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            except OSError:
                return len(content)


def protect() -> None:
    """Let this process's standard streams be there, and printing never raise.

    Streams that somebody has put in their place (a test, a notebook) are left alone.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed: the next file to be opened would take its place, and be printed into
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    codecs.register_error("rl_runner.plain", _plainly)
    sys.stdin = sys.stdin or io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if (stream := getattr(sys, name)) is getattr(sys, f"__{name}__"):
            setattr(sys, name, _unfailing(stream, descriptor))
            setattr(sys, f"__{name}__", getattr(sys, name))


def _unfailing(stream: Any, descriptor: int) -> io.TextIOWrapper:
    if stream:
        with suppress(OSError):
            stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Unfailing(descriptor, "w", closefd=False)),
        encoding=stream.encoding if stream else "utf-8",
        errors="rl_runner.plain",
        line_buffering=not stream or stream.line_buffering or stream.write_through,
    )


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Letters that an encoding does not have, in those that it has."""
    assert isinstance(error, UnicodeEncodeError)
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters), error.end


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing reaches the standard output and the standard error meanwhile, whoever writes; exceptions do."""
    streams = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        try:
            for descriptor in (1, 2):
                os.dup2(nowhere.fileno(), descriptor)
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        finally:
            for stream in streams:
                stream.flush()
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)


def printable(text: str) -> str:
    """The text on one line of printable characters, which does nothing to a terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
