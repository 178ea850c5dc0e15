"""`rl-runner resume DIR [key=value ...]`: goes on with a run or a sweep where it stopped, or beyond its end."""

from pathlib import Path

from rl_runner.errors import Parser
from rl_runner.rundir import CONFIG, SWEEP


def main(argv: list[str]) -> None:
    """Continue a run or all of a sweep; overrides may change what was not learned from, such as total_steps."""
    parser = Parser(prog="rl-runner resume", description=__doc__)
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="of a run or a sweep; a search goes on with its own command"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", default=[], help="total_steps=N extends the run")
    arguments = parser.parse_args(argv)
    if (arguments.directory / SWEEP).exists():
        from rl_runner.sweep.conduct import resume

        resume(arguments.directory, arguments.overrides)
    else:
        from rl_runner.config.schema import load_config
        from rl_runner.run import run

        run(load_config(arguments.directory / CONFIG, arguments.overrides), arguments.directory)
