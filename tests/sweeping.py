"""What the tests of sweeps share: tiny jobs in a plugin's environment, and how to look at them."""

import os
from dataclasses import dataclass
from pathlib import Path

from killing import assert_same, newest_number

from rl_runner.config.schema import load_config
from rl_runner.persistence import CONFIG
from rl_runner.run import run

TINY = (
    "algo=q_learning", "env=Mishap-v0", "plugins=[mishaps]", "total_steps=600", "log_every=100", "eval_every=200",
    "eval_episodes=2", "final_eval_episodes=2", "checkpoint_every=100",
)  # fmt: skip
# With which the processes that a test starts find the tests' plugin.
PYTHONPATH = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))


@dataclass
class Ended:
    """What a command came to: its exit code, and the lines that it printed."""

    code: int
    out: list[str]
    err: list[str]


def only(directory: Path, pattern: str) -> Path:
    """The one path that matches."""
    (found,) = directory.glob(pattern)
    return found


def checkpoints(sweep: Path, seed: int) -> int:
    """How many checkpoints the job of a seed has completed, perhaps before there is its directory."""
    return max((newest_number(job) for job in sweep.glob(f"seed={seed},*")), default=0)


def same_as_alone(job: Path, place: Path) -> None:
    """A job's files are those of a run of its config by itself."""
    run(load_config(job / CONFIG, ["plugins=[mishaps]"]), place)
    assert_same(job, place)
