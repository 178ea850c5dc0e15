"""The command line: training and sweeps through Hydra, and the sub-commands; nothing here imports torch."""

import importlib
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rl_runner import __version__, console
from rl_runner.commands import COMMANDS, hydra_parser, parse
from rl_runner.errors import Interrupted, Told, UserError, report_error
from rl_runner.help import FLAGS, answer, show_defaults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 bad input, 128 + n stopped by signal n."""
    console.protect()
    words = list(sys.argv[1:] if arguments is None else arguments)
    query = next((word.removeprefix("query=") for word in words if word.startswith("query=")), None)
    try:
        if sys.platform == "win32" or find_spec("fcntl") is None:
            raise UserError("rl-runner runs on Linux and macOS; on Windows use WSL")
        if query and not FLAGS.isdisjoint(words):
            answer(query)
        elif words and words[0] in COMMANDS:
            command(words[0], words[1:])
        elif "--version" in words:
            print(versions())
        elif words in (["--help"], ["-h"]):
            show_defaults()
        else:
            compose(words)
    except (Told, Interrupted) as error:
        return report_error(error)
    except KeyboardInterrupt:
        return 130
    return 0


def versions() -> str:
    """What a report of a fault should quote."""
    from importlib.metadata import version

    found = f"rl-runner {__version__}, torch {version('torch')}, hydra {version('hydra-core')}"
    return f"{found}, Python {platform.python_version()}"


def command(name: str, words: list[str]) -> None:
    """Run a sub-command; a file that cannot be read or written is the user's to put right."""
    parse(name, words)  # help and mistakes need not wait for what the module imports
    try:
        module, _, function = COMMANDS[name][0].rpartition(".")
        getattr(importlib.import_module(module), function)(words)
    except OSError as error:
        raise UserError(f"{error.filename or f'rl-runner {name}'}: {error.strerror or error}") from error


def compose(words: list[str]) -> None:
    """Let Hydra compose the words, and do what they ask for."""
    plugins = str(Path(__file__).parent / "_plugins")
    if plugins not in sys.path:
        sys.path.insert(0, plugins)  # Hydra finds plugins in packages named hydra_plugins on this path
    parser = hydra_parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        from rl_runner.config.problems import unknown_option

        raise UserError("\n".join(map(unknown_option, unknown)))
    from rl_runner.config.compose import start

    start(arguments, parser)


if __name__ == "__main__":
    sys.exit(main())
