"""Whole training steps of rl_runner, Stable-Baselines3 and SBX on the same machine, in one run and in turns.

    pip install -c constraints.txt -e ".[mujoco,bench]"  # the rows of images need [atari,minatar] besides
    python benchmarks/speed.py [--rows sac-pendulum ...] [--repeats 5] [--cores 1 | all] [--markdown FILE]

Every subject trains in a fresh process: the same environment, network, batch, learning rate and one update per
environment step, on Atari after every fourth. After a warm-up (random steps, compilation) the rest is timed: CPU and
wall milliseconds per environment step, the update included. The table gives the median over repeats; ratios are of CPU
time, in pairs of neighbouring runs. The floor is the update's list of matrix products alone, timed in the process of
rl_runner.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import geometric_mean, median
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium as gym

WARM_UP = 600  # environment steps before the clock starts, the last 300 of them with updates
STARTS = 300
EPISODES = 10  # of an evaluation


@dataclass(frozen=True)
class Row:
    """One comparison."""

    algo: str
    env: str
    hidden: tuple[int, ...]
    batch: int
    steps: int  # timed
    encoder: str = "flat"  # or the name of convolutions, which Stable-Baselines3 is given as a features extractor
    every: int = 1  # environment steps between updates


ROWS = {
    "dqn-cartpole": Row("dqn", "CartPole-v1", (120, 84), 128, 4000),
    "sac-pendulum": Row("sac", "Pendulum-v1", (256, 256), 256, 800),
    "sac-halfcheetah": Row("sac", "HalfCheetah-v5", (256, 256), 256, 800),
    "td3-halfcheetah": Row("td3", "HalfCheetah-v5", (256, 256), 256, 1000),
    "ddpg-pendulum": Row("ddpg", "Pendulum-v1", (256, 256), 256, 1200),
}
IMAGES = {
    "dqn-minatar": Row("dqn", "MinAtar/Breakout-v1", (128,), 32, 2000, "minatar_cnn"),
    "dqn-pong-data-efficient": Row("dqn", "ALE/Pong-v5", (256,), 32, 1600, "data_efficient", every=4),
    "dqn-pong-nature": Row("dqn", "ALE/Pong-v5", (512,), 32, 800, "nature_cnn", every=4),
}


class Clock:
    """CPU and wall time between the end of the warm-up and the last step."""

    def __init__(self, total: int, seed: int = 0):
        self.total, self.seed, self.result = total, seed, {}
        self.cpu = self.wall = 0.0
        self.evaluate: Callable[[], float] = lambda: math.nan  # how well the policy does at present

    def tick(self, step: int) -> None:
        if step == WARM_UP:
            self.result["startup_s"] = time.time() - float(os.environ["BENCH_STARTED"])
            self.cpu, self.wall = time.process_time(), time.perf_counter()
        elif step == self.total:
            steps = self.total - WARM_UP
            self.result["cpu_ms"] = (time.process_time() - self.cpu) / steps * 1e3
            self.result["wall_ms"] = (time.perf_counter() - self.wall) / steps * 1e3
            self.result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def time_rl_runner(row: Row, clock: Clock, mode: str = "compile", precision: str = "highest") -> dict[str, float]:
    """The real loop with its logger, as `python -m rl_runner` runs it."""
    from floor import floor_ms
    from hydra import compose, initialize_config_dir

    import rl_runner.config.compose as composing
    from rl_runner.accelerate import build_update
    from rl_runner.config.schema import parse
    from rl_runner.config.words import plain
    from rl_runner.logger import Logger
    from rl_runner.machine import set_up
    from rl_runner.notes import PACKAGE
    from rl_runner.run import build
    from rl_runner.sinks import TensorBoard
    from rl_runner.train import train

    sys.path.insert(0, str(PACKAGE / "_plugins"))
    overrides = [
        f"algo={row.algo}", f"env={row.env}", "tuned=none", f"network.hidden={list(row.hidden)}",
        f"algo.batch_size={row.batch}", f"total_steps={clock.total}", f"seed={clock.seed}", f"learning_starts={STARTS}",
        "eval_every=0", f"encoder={row.encoder}", f"update_every={row.every}",
    ]  # fmt: skip
    with initialize_config_dir(str(composing.CONFIGS), version_base="1.3"):
        values, written = plain(compose("config", overrides))
    parsed = parse(values, written, {}, overrides)
    assert parsed.config, parsed.problems
    set_up("cpu", parsed.config.threads, precision)
    with TemporaryDirectory() as directory:
        parts = build(parsed.config, Path(directory))
        logger = Logger(Path(directory), {"tensorboard": partial(TensorBoard, directory=Path(directory), hparams={})})
        update = build_update(parts.agent, parts.replay, parts.averages, mode, precision)
        clock.evaluate = lambda: parts.evaluator(parts.agent, EPISODES)[0]["eval/return_mean"]
        train(parts, update, logger.write, lambda: clock.tick(parts.step))
        logger.close()
    if row.encoder != "flat":
        return clock.result
    return clock.result | {"floor_ms": floor_ms(row.algo, parts.envs.spec, row.hidden, row.batch, precision)}


def time_sb3(row: Row, clock: Clock) -> dict[str, float]:
    import stable_baselines3

    return _time_baselines(stable_baselines3, row, clock)


def time_sbx(row: Row, clock: Clock) -> dict[str, float]:
    import sbx

    return _time_baselines(sbx, row, clock)


def _time_baselines(library: Any, row: Row, clock: Clock) -> dict[str, float]:
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    class Tick(BaseCallback):
        def _on_step(self) -> bool:
            clock.tick(self.num_timesteps)
            return True

    env: Any = row.env
    policy: dict[str, Any] = {"net_arch": list(row.hidden)}
    keys: dict[str, Any] = {}
    if row.encoder != "flat":
        env, keys = _images(row.env), {"buffer_size": 20_000}
        policy |= {"features_extractor_class": _convolutions(row.encoder), "normalize_images": False}
    model = getattr(library, row.algo.upper())(
        "MlpPolicy", env, policy_kwargs=policy, seed=clock.seed,
        learning_starts=STARTS, batch_size=row.batch, train_freq=row.every, gradient_steps=1, **keys,
    )  # fmt: skip
    beside = Monitor(gym.make(row.env))
    beside.reset(seed=clock.seed)
    clock.evaluate = lambda: evaluate_policy(model, beside, EPISODES)[0]
    model.learn(clock.total, callback=Tick())
    return clock.result


def _images(name: str) -> Any:
    """The environment with what the presets of rl_runner wrap around it."""
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

    package = import_module({"ALE": "ale_py", "MinAtar": "minatar.gym"}[name.partition("/")[0]])
    if hasattr(package, "register_envs"):
        package.register_envs()
    if not name.startswith("ALE/"):
        return gym.make(name)
    wrap = partial(gym.wrappers.AtariPreprocessing, noop_max=0, frame_skip=4, screen_size=84, grayscale_newaxis=True)
    return VecFrameStack(DummyVecEnv([lambda: wrap(gym.make(name, frameskip=1))]), 4)


def _convolutions(name: str) -> type:
    """The encoder of configs/encoder/NAME.yaml as a features extractor."""
    import torch
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import Tensor, nn

    from rl_runner.encoders import values_of

    class Convolutions(BaseFeaturesExtractor):  # type: ignore[misc]
        def __init__(self, space: gym.spaces.Box):
            first, keys = space.shape[0] < space.shape[-1], values_of(name)
            layers, channels = list[nn.Module](), space.shape[0 if first else -1]
            for n_out, kernel, stride in zip(keys["channels"], keys["kernels"], keys["strides"], strict=True):
                layers += [nn.Conv2d(channels, n_out, kernel, stride), nn.ReLU()]
                channels = n_out
            image = torch.zeros(1, *space.shape).movedim(1 if first else -1, 1)
            super().__init__(space, nn.Sequential(*layers)(image).numel())
            self.layers, self.first, self.scale = nn.Sequential(*layers), first, float(space.high.max())

        def forward(self, obs: Tensor) -> Tensor:
            x = obs if self.first else obs.movedim(-1, 1)
            return self.layers(x / self.scale).flatten(1)

    return Convolutions


SUBJECTS = {
    "rl_runner": time_rl_runner,
    "rl_runner, eager": lambda row, clock: time_rl_runner(row, clock, "eager"),
    "rl_runner, bfloat16": lambda row, clock: time_rl_runner(row, clock, precision="bfloat16"),
    "SB3": time_sb3,
    "SBX": time_sbx,
}


def run_apart(script: str, words: list[str], cores: str) -> dict[str, float]:
    """What a script's `--worker` prints in a process of its own, on one core or all."""
    threads = "1" if cores == "1" else str(os.cpu_count())
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "BENCH_STARTED": str(time.time()),
        "BENCH_CORES": cores,
    }
    done = subprocess.run([sys.executable, script, "--worker", *words], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{words} failed:\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def to_one_core() -> None:
    """Hold this process to one core and one thread."""
    import torch

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)


def table(results: dict[str, dict[str, list[dict[str, float]]]], cores: str) -> str:
    """Markdown: a line per row and subject, then the geometric means of the ratios."""
    lines = [
        f"One thread on one core: {cores == '1'}. CPU and wall are milliseconds per environment step with one update.",
        "",
        "| row | subject | CPU ms | wall ms | CPU time of subject / rl_runner | floor ms | peak MB | start-up s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios: dict[str, list[float]] = {}
    for name, by_subject in results.items():
        ours = by_subject["rl_runner"]
        for subject, runs in by_subject.items():
            ratio = median(theirs["cpu_ms"] / our["cpu_ms"] for theirs, our in zip(runs, ours, strict=True))
            ratios.setdefault(subject, []).append(ratio)
            figure = {key: median(run[key] for run in runs) for key in runs[0]}
            floor = f"{figure['floor_ms']:.2f}" if "floor_ms" in figure else ""
            lines.append(
                f"| {name} | {subject} | {figure['cpu_ms']:.2f} | {figure['wall_ms']:.2f} | {ratio:.2f} | {floor} "
                f"| {figure['peak_mb']:.0f} | {figure['startup_s']:.1f} |"
            )
    lines += ["", "Geometric mean of the ratios: " + ", ".join(
        f"{subject} {geometric_mean(values):.2f}" for subject, values in ratios.items() if subject != "rl_runner"
    )]  # fmt: skip
    if ours := ratios.get("rl_runner, bfloat16"):
        lines += ["", "The same by that of rl_runner, bfloat16: " + ", ".join(
            f"{subject} {geometric_mean(t / o for t, o in zip(ratios[subject], ours, strict=True)):.2f}"
            for subject in ("SB3", "SBX") if subject in ratios
        )]  # fmt: skip
    return "\n".join(lines)


def machine() -> str:
    """The processor and the versions that were measured."""
    from importlib.metadata import version

    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())  # fmt: skip
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "stable-baselines3", "sbx-rl", "jax"))
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS | IMAGES, default=list(ROWS))
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", choices=("1", "all"), default="1")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("SUBJECT", "ROW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        subject, name = arguments.worker
        if os.environ["BENCH_CORES"] == "1":
            to_one_core()
        row = (ROWS | IMAGES)[name]
        print(json.dumps(SUBJECTS[subject](row, Clock(WARM_UP + row.steps))))
        return
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in arguments.rows:
        results[name] = {subject: [] for subject in arguments.subjects}
        for repeat in range(arguments.repeats):
            for subject, runs in results[name].items():
                runs.append(run_apart(__file__, [subject, name], arguments.cores))
                print(f"{name} {repeat + 1}/{arguments.repeats} {subject}: {runs[-1]['cpu_ms']:.2f}", file=sys.stderr)
    text = f"{machine()}\n\n{table(results, arguments.cores)}\n"
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
