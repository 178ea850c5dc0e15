"""Every experiment file is a sweep that its own header starts."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeping import Ended

from rl_runner.config.compose import CONFIGS

EXPERIMENTS = sorted((CONFIGS / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_header_is_the_command(path: Path, rl_runner: Callable[..., Ended]) -> None:
    package, command, *_ = path.read_text().splitlines()
    assert package == "# @package _global_"
    program, *words = shlex.split(command.removeprefix("# "))
    assert program == "rl-runner"
    assert f"experiment={path.stem}" in words
    ended = rl_runner(*words, "seed=0", "dry_run=true")
    assert (ended.code, ended.err) == (0, [])
    assert ended.out[-1].split()[1] == "jobs"


def test_experiment_without_multirun_is_refused(rl_runner: Callable[..., Ended]) -> None:
    assert rl_runner("experiment=tau").code == 2
