"""Runs in processes of their own, to be killed, and how to compare what came out."""

import json
import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_runner.config.schema import Config
from rl_runner.persistence import CHECKPOINT, METRICS, RESULT, read_json

WALL_CLOCK = {"charts/SPS", "charts/updates_per_second"}

# What `algo=sac` is composed to before it is looked at with an environment whose actions are discrete.
DISCRETE_SAC = (
    "algo._target_=rl_runner.algos.discrete_sac.DiscreteSAC", "~algo.log_std_min", "~algo.log_std_max",
)  # fmt: skip

# A server that has imported everything forks a run in milliseconds; importing takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
IMPORTS = ("rl_runner.run", "torch._dynamo", "torch.utils.tensorboard", "mujoco", "gymnasium.envs.box2d")
PROCESSES.set_forkserver_preload([*IMPORTS, "gymnasium.envs.classic_control"])


class Sleepy(gym.Env):
    """Falls asleep in its 500th step, after it has left a note."""

    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def __init__(self, note: str):
        self.note = Path(note)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Sleepy.steps += 1
        if Sleepy.steps == 500:
            self.note.touch()
            time.sleep(600)
        return np.zeros(1, np.float32), 0.0, False, Sleepy.steps % 10 == 0, {}


gym.register("Sleepy-v0", Sleepy)


def start(config: Config, directory: Path) -> BaseProcess:
    """A process that runs the config."""
    process = PROCESSES.Process(target=_play, args=(config, directory))
    process.start()
    return process


def run_to_the_end(config: Config, directory: Path) -> None:
    """Run in one process, or what is left of a run."""
    process = start(config, directory)
    process.join()
    assert process.exitcode == 0, (directory.parent / "output").read_text()


def run_with_kills(config: Config, directory: Path, kills: int, pause: float, rng: Random) -> int:
    """Run to the end in as many processes as it takes, each of the first `kills` killed at a random instant.

    `pause`: seconds, on the order of those between two checkpoints. How many kills it came to: fewer than asked for if
    the run was at its end before.
    """
    for done in range(kills):
        process = start(config, directory)
        enough = newest_number(directory) + rng.randint(0, 2)
        while process.is_alive() and newest_number(directory) < enough:
            time.sleep(0.001)
        process.join(timeout=rng.uniform(0, 2 * pause))
        if not process.is_alive():
            assert process.exitcode == 0, (directory.parent / "output").read_text()
            return done
        kill(process)
    run_to_the_end(config, directory)
    return kills


def kill(process: BaseProcess, signum: int = signal.SIGKILL) -> None:
    assert process.pid is not None
    os.kill(process.pid, signum)
    process.join()


def newest_number(directory: Path) -> int:
    """How many checkpoints were completed."""
    return max((int(path.stem) for path in (directory / CHECKPOINT).glob("*.json")), default=0)


def assert_same(one: Path, other: Path) -> None:
    """The same parameters, results and rows; and TensorBoard shows of each run what its rows say."""
    results = [read_json(directory / RESULT) for directory in (one, other)]
    for result in results:
        assert result.pop("sps") > 0
        assert result.pop("wall_seconds") > 0
    assert results[0] == results[1]
    assert rows(one) == rows(other)
    for directory in (one, other):
        assert_curves_are_rows(directory)


def rows(directory: Path) -> list[dict[str, Any]]:
    """metrics.jsonl but for the clock."""
    found = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
    return [{tag: value for tag, value in row.items() if tag not in WALL_CLOCK} for row in found]


def assert_curves_are_rows(directory: Path) -> None:
    """TensorBoard has every point of metrics.jsonl once, and no other."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in (directory / METRICS).read_text().splitlines():
        row = json.loads(line)
        for tag in row.keys() - {"step"}:
            expected.setdefault(tag, []).append((row["step"], torch.tensor(row[tag], dtype=torch.float32).item()))
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    shown = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    shown.pop("eval/return_mean/hparams", None)
    assert shown == expected


def _play(config: Config, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    output = os.open(directory.parent / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from rl_runner.run import run

    run(config, directory)
