"""The ways in which a command can end other than well."""

import argparse
import re
import sys
import traceback
from typing import NoReturn

_hidden: dict[str, str] = {}
SHORTEST_SECRET = 4  # characters; hiding a number such as 1 would only spoil messages


def hide(value: str, written: str) -> None:
    """From now on messages hold what was written in the place of a value of the process environment."""
    for shown in (value, " ".join(value.split()), repr(value)[1:-1]):
        if len(shown) >= SHORTEST_SECRET:
            _hidden[shown] = written


class Told(Exception):  # noqa: N818 - it names an outcome, not a mistake in the code
    """Ends in its message alone, without a traceback."""

    code = 1

    def __str__(self) -> str:
        longest_first = sorted(_hidden, key=len, reverse=True)  # one value may be a part of another
        pattern = "|".join(map(re.escape, longest_first)) or r"(?!)"
        return re.sub(pattern, lambda found: _hidden[found[0]], super().__str__())


class UserError(Told):
    """Something the user can put right; its lines say how. Exit code 2, nothing written."""

    code = 2


class RunFailed(Told):
    """Training cannot go on (a NaN, a broken environment); the message names the culprit. Exit code 1."""


class Interrupted(BaseException):
    """A signal asked a run or a sweep to stop; `command` goes on. Exit code 128 + signal number.

    `unsaved`: what could not be saved, if anything. No `except Exception` of an environment may take it for its own.
    """

    def __init__(self, signum: int, command: str, unsaved: str | None = None):
        state = f"; {unsaved}" if unsaved else ", all is saved"
        super().__init__(f"interrupted by signal {signum}{state}; to go on: {command}")
        self.signum, self.unsaved, self.code = signum, unsaved, 128 + signum


class Parser(argparse.ArgumentParser):
    """A sub-command's arguments; a mistake in them is one line like any other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def report_error(error: BaseException) -> int:
    """Print what a command ended with; its exit code."""
    if isinstance(error, Told | Interrupted):
        print(error, file=sys.stderr)
        return error.code
    traceback.print_exception(error)
    return 1
