"""The sub-commands: their arguments, and the functions that do them, whose modules are imported only then."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rl_runner.errors import Parser
from rl_runner.persistence import POLICY, VIDEOS

if hasattr(argparse.ArgumentParser, "_check_help"):  # Python 3.14: it takes any help for a string
    _check_help = argparse.ArgumentParser._check_help

    def _check_strings(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
        if isinstance(action.help, str):  # one of Hydra's is an object, which becomes one when it is shown
            _check_help(parser, action)

    argparse.ArgumentParser._check_help = _check_strings

SCORE = "eval/return_mean"
TO_OPEN = "plugins=[...] names packages of yours that the run needs, env.kwargs.KEY=VALUE changes its environment"


def parse(name: str, words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a sub-command; UserError if they are not understood."""
    return parser(name).parse_intermixed_args(words)


def parser(name: str) -> Parser:
    _, description, add_arguments = COMMANDS[name]
    made = Parser(prog=f"rl-runner {name}", description=description)
    add_arguments(made)
    return made


def hydra_parser() -> argparse.ArgumentParser:
    """The arguments of everything that is no sub-command."""
    from hydra._internal.utils import get_args_parser

    return get_args_parser()


def _resume(parser: Parser) -> None:
    _run(parser, "of a run or a sweep; a search goes on with its own command", "total_steps=N extends the run")


def _eval(parser: Parser) -> None:
    _run(parser)
    parser.add_argument("--episodes", type=positive_number, help="how many; by default as its final evaluation")
    parser.add_argument("--video", action="store_true", help=f"record one episode into DIR/{VIDEOS}")


def _export(parser: Parser) -> None:
    _run(parser)
    parser.add_argument("--out", metavar="FILE", type=Path, help=f"where to write (default: DIR/{POLICY})")


def _report(parser: Parser) -> None:
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="a run, a sweep or a folder of them")
    parser.add_argument("--out", type=Path, help="where to write (default: DIR/report)")
    parser.add_argument("--title", help="the page's title")
    parser.add_argument("--tag", default=SCORE, help="any logged tag, by its value at the end (default: %(default)s)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write tables and sentences as Markdown")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="JSON file of published scores to overlay")
    parser.add_argument("--method", action="append", default=[], help="a method of --reference (default: all of them)")


def _run(parser: Parser, directory: str = "the run's directory", overrides: str = TO_OPEN) -> None:
    """The place of a run and what changes it, with the help of both."""
    parser.add_argument("directory", metavar="DIR", type=Path, help=directory)
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=overrides)


def positive_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of 1 or more")
    return int(text)


COMMANDS: dict[str, tuple[str, str, Callable[[Parser], None]]] = {
    "resume": (
        "rl_runner.resume.main",
        "Go on with a run or a sweep where it stopped, or beyond its end.",
        _resume,
    ),
    "eval": (
        "rl_runner.saved_policy.evaluate",
        "Evaluate the policy of a run's newest checkpoint anew, and record a video of it.",
        _eval,
    ),
    "export": (
        "rl_runner.saved_policy.export",
        "Write the policy of a run's newest checkpoint as one file that needs PyTorch alone.",
        _export,
    ),
    "report": ("rl_runner.report.main", "Turn runs and sweeps into one page with the answer.", _report),
}
