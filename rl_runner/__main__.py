"""The command line: training and sweeps through Hydra, and the sub-commands; nothing here imports torch."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rl_runner import console
from rl_runner.errors import Interrupted, RunFailed, UserError, tell

COMMANDS = {
    "resume": "rl_runner.resume",
    "eval": "rl_runner.saved_policy",
    "export": "rl_runner.export",
    "report": "rl_runner.report",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 bad input, 128 + n stopped by signal n."""
    console.protect()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in COMMANDS:
            command(words[0], words[1:])
        else:
            compose_and_run(words)
    except (UserError, RunFailed, Interrupted) as error:
        return tell(error)
    except KeyboardInterrupt:
        return 130
    return 0


def command(name: str, words: list[str]) -> None:
    """Run a sub-command; a file that cannot be read or written is the user's to put right."""
    try:
        importlib.import_module(COMMANDS[name]).main(words)
    except OSError as error:
        raise UserError(f"{error.filename or f'rl-runner {name}'}: {error.strerror or error}") from error


def compose_and_run(words: list[str]) -> None:
    """Let Hydra compose the command line and start what it asks for."""
    plugins = str(Path(__file__).parent / "_plugins")
    if plugins not in sys.path:
        sys.path.insert(0, plugins)  # Hydra finds plugins in packages named hydra_plugins on this path
    import hydra
    from hydra._internal.utils import get_args_parser

    from rl_runner.config.compose import CONFIGS, REFUSALS, train_job

    arguments, unknown = get_args_parser().parse_known_args(words)
    if unknown:
        raise UserError(f"no such option: {' '.join(unknown)}; see rl-runner --help")
    sys.argv[1:] = words
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them, so that they can be explained
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(train_job)()
    except REFUSALS as error:
        from rl_runner.config.diagnose import explain

        raise explain(arguments, error) from error


if __name__ == "__main__":
    sys.exit(main())
