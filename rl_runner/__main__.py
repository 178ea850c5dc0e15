"""The command line: training and sweeps through Hydra, and the sub-commands; nothing here imports torch."""

import importlib
import os
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rl_runner import completion, console
from rl_runner.commands import COMMANDS, hydra_parser, parse
from rl_runner.errors import Interrupted, RunFailed, UserError, tell
from rl_runner.help import show, show_defaults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 bad input, 128 + n stopped by signal n."""
    console.protect()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        dispatch(words)
    except (UserError, RunFailed, Interrupted) as error:
        return tell(error)
    except KeyboardInterrupt:
        return 130
    return 0


def dispatch(words: list[str]) -> None:
    """Do what the words ask for."""
    if sys.platform == "win32" or find_spec("fcntl") is None:
        raise UserError("rl-runner runs on Linux and macOS; on Windows use WSL")
    if shell := completion.asking(words):
        completion.answer(shell)
    elif words and words[0] in COMMANDS:
        command(words[0], words[1:])
    elif "--version" in words:
        print(versions())
    elif words in (["--help"], ["-h"]):
        show_defaults()
    else:
        compose_and_run(words)


def versions() -> str:
    """What a report of a fault should quote."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name, package in (("rl-runner", "rl-runner"), ("torch", "torch"), ("hydra", "hydra-core")):
        try:
            found.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{name} is not installed")
    return ", ".join([*found, f"Python {platform.python_version()}"])


def command(name: str, words: list[str]) -> None:
    """Run a sub-command; a file that cannot be read or written is the user's to put right."""
    parse(name, words)  # help and mistakes need not wait for what the module imports
    try:
        importlib.import_module(COMMANDS[name][0]).main(words)
    except OSError as error:
        raise UserError(f"{error.filename or f'rl-runner {name}'}: {error.strerror or error}") from error


def compose_and_run(words: list[str]) -> None:
    """Let Hydra compose the command line and start what it asks for."""
    plugins = str(Path(__file__).parent / "_plugins")
    if plugins not in sys.path:
        sys.path.insert(0, plugins)  # Hydra finds plugins in packages named hydra_plugins on this path
    import hydra
    from hydra._internal.hydra import Hydra

    from rl_runner.config.compose import CONFIGS, REFUSALS, train_job
    from rl_runner.config.problems import unknown_option
    from rl_runner.config.words import opened

    words = [opened(word) for word in words]
    arguments, unknown = hydra_parser().parse_known_args(words)
    if unknown:
        raise UserError("\n".join(map(unknown_option, unknown)))
    sys.argv[1:] = words
    Hydra.app_help = show  # type: ignore[assignment, method-assign]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them, so that they can be explained
    try:
        run = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(train_job)
        completion.install(run) if arguments.shell_completion else run()
    except REFUSALS as error:
        from rl_runner.config.diagnose import explain

        raise explain(arguments, error) from error


if __name__ == "__main__":
    sys.exit(main())
