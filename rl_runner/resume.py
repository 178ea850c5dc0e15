"""`rl-runner resume DIR [key=value ...]`: goes on with a run or a sweep where it stopped, or beyond its end."""

from rl_runner.commands import parse
from rl_runner.rundir import CONFIG, SWEEP


def main(argv: list[str]) -> None:
    """Continue a run or all of a sweep; overrides may change what was not learned from, such as total_steps."""
    arguments = parse("resume", argv)
    if (arguments.directory / SWEEP).exists():
        from rl_runner.sweep.conduct import resume

        resume(arguments.directory, arguments.overrides)
    else:
        from rl_runner.config.schema import load_config
        from rl_runner.run import run

        run(load_config(arguments.directory / CONFIG, arguments.overrides), arguments.directory)
