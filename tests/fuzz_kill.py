"""Kills runs at random instants for as long as asked, and compares each with an undisturbed one.

    python tests/fuzz_kill.py --minutes 60 [--seed 0] [--compile]

Every round draws an algorithm, an environment, options and a schedule of checkpoints, and kills the run between 5 and
20 times. It ends with one line of figures, or at the first difference, whose directory it names and keeps.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import hydra
from killing import assert_same, newest_number, run_to_the_end, run_with_kills
from test_kill import ENVS

import rl_runner
from rl_runner.config.compose import CONFIGS, parse_composed
from rl_runner.config.schema import Config
from rl_runner.persistence import RESULT, read_json


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="let every third run be compiled")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(rl_runner.__file__).parent / "_plugins"))
    rng, end = Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    rounds = kills = 0
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    while time.monotonic() < end:
        words = draw(rng, arguments.compile)
        directory = scratch / f"{rounds}"
        count = play(configure(words), directory, rng)
        rounds, kills = rounds + 1, kills + count
        print(f"round {rounds}, {count} kills, the same bits: {' '.join(words)}", flush=True)
        shutil.rmtree(directory)
    print(f"{rounds} runs, {kills} kills, {rounds} times the same bits")
    scratch.rmdir()
    return 0


def draw(rng: Random, compiled: bool) -> list[str]:
    """The words of a random run."""
    algo = rng.choice(list(ENVS))
    words = [
        f"algo={algo}", f"env={rng.choice(ENVS[algo])}", "tuned=none", f"seed={rng.randrange(1000)}",
        f"num_envs={rng.choice([1, 1, 3])}", f"total_steps={rng.randrange(2000, 4000)}",
        f"log_every={rng.choice([50, 100, 333])}", f"eval_every={rng.choice([0, 500, 700])}", "eval_episodes=2",
        "final_eval_episodes=3", "learning_starts=100", f"update_every={rng.choice([1, 2, 5])}",
        f"checkpoint_every={rng.choice([13, 40, 80])}",
        f"accelerate={'compile' if compiled and rng.random() < 1 / 3 else 'eager'}",
    ]  # fmt: skip
    if algo == "q_learning":
        return words
    words += ["network.hidden=[16]", "algo.batch_size=8", f"replay={rng.choice(['uniform', 'prioritized'])}"]
    words += [f"replay.capacity={rng.choice([150, 1000, 100_000])}", f"replay.n_step={rng.choice([1, 3])}"]
    words += [f"replay.deduplicate={rng.choice(['true', 'false'])}", f"env.frame_stack={rng.choice([1, 1, 2])}"]
    words += [f"replay.storage={rng.choice(['memory', 'memmap'])}"]
    words += [f"optimizer={rng.choice(['adam', 'adamw', 'rmsprop', 'sgd'])}", "algo.max_grad_norm=1"]  # or SGD diverges
    return [*words, f"algo.noise={rng.choice(['ou', 'gaussian'])}"] if algo == "ddpg" else words


def play(config: Config, directory: Path, rng: Random) -> int:
    """Run it once undisturbed and once with kills; how many they were."""
    run_to_the_end(config, directory / "undisturbed" / "run")
    result: dict[str, Any] = read_json(directory / "undisturbed" / "run" / RESULT)
    checkpoints = newest_number(directory / "undisturbed" / "run")
    count = min(rng.randint(5, 20), checkpoints // 4)
    pause = result["total_steps"] / result["sps"] / checkpoints
    count = run_with_kills(config, directory / "killed" / "run", count, pause, rng)
    assert_same(directory / "undisturbed" / "run", directory / "killed" / "run")
    return count


def configure(words: list[str]) -> Config:
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = hydra.compose("config", words, return_hydra_config=True)
        config, _, _, problems = parse_composed(composed)
    assert config is not None, problems
    return config


if __name__ == "__main__":
    sys.exit(main())
