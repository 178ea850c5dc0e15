"""What checkpoints cost: 10 000 new rows of a 200 MB replay, and the default schedule of a real run.

    python benchmarks/checkpoint.py [--seconds 150] [--frames]

The first part times `save`, during which training waits, and how much later the checkpoint is on disk. The second
trains DQN on CartPole, the fastest stepping there is, by the default schedule, and adds up what `save` and the writing
thread take of it. With `--frames` there is but the first part, of a million Atari frames that are each stored once: it
takes 7 GB of memory and as much of the disk.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from rl_runner.envs import Spec
from rl_runner.persistence.checkpoint import Checkpoints, log_of
from rl_runner.replay import UniformReplay

ROWS, NEW_ROWS, REPEATS = 1_000_000, 10_000, 12
ROW = Spec((22,), torch.float32, None, None, 4, 1, None)
FRAMES = Spec((4, 84, 84), torch.uint8, None, 6, None, 4, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=150, help="how long to train for the second part")
    parser.add_argument("--frames", action="store_true", help="time a replay of single frames")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=".") as scratch:  # not /tmp, which may be in memory
        if arguments.frames:
            measure_new_rows(Path(scratch) / "frames", FRAMES, deduplicate=True)
            return
        measure_new_rows(Path(scratch) / "rows", ROW)
        measure_schedule(Path(scratch) / "run", arguments.seconds)


def measure_new_rows(directory: Path, spec: Spec, deduplicate: bool = False) -> None:
    keys = {"capacity": ROWS, "deduplicate": deduplicate}
    replay = UniformReplay(
        spec=spec, num_envs=1, gamma=0.99, total_steps=1, seed=0, device="cpu", directory=None, **keys
    )
    ring = replay.ring
    for name, column in ring.columns.items():
        if name == "obs" and deduplicate:
            column.copy_(torch.arange(ring.rows).view(-1, 1, 1) % 256)
        else:
            column.copy_(torch.rand(column.shape).to(column.dtype))
    # An episode of 1 000 steps has one in a table of its own, which goes into every checkpoint whole.
    ends = torch.arange(999, ROWS, 1000)
    finals = {"row": ends, "obs": ring.columns["obs"][ends]} if deduplicate else {}
    ring.load_state_dict({"head": ROWS, "finals": finals})
    checkpoints = Checkpoints(directory, {}, log_of(replay, directory), None)
    checkpoints.save(0, replay.state_dict())
    checkpoints.wait()
    waits, durations = [], []
    for i in range(REPEATS):
        ring.load_state_dict(ring.state_dict() | {"head": ring.head + NEW_ROWS})
        started = time.perf_counter()
        checkpoints.save(i + 1, replay.state_dict())
        waits.append(1e3 * (time.perf_counter() - started))
        checkpoints.wait()
        durations.append(1e3 * (time.perf_counter() - started))
    size = sum(column.nbytes for column in ring.columns.values()) / 1e6
    print(f"{NEW_ROWS:,} new rows of a replay of {size:.0f} MB, median and maximum of {REPEATS}:")
    for what, milliseconds in (("training waits", waits), ("on disk after", durations)):
        print(f"  {what} {statistics.median(milliseconds):.1f} ms, {max(milliseconds):.1f} ms")


def measure_schedule(directory: Path, seconds: float) -> None:
    from rl_runner.config.compose import CONFIGS, parse_composed
    from rl_runner.run import run

    sys.path.insert(0, str(CONFIGS.parent / "rl_runner" / "_plugins"))
    import hydra

    spent: list[float] = []
    save, commit = Checkpoints.save, Checkpoints._commit

    def timed_save(*arguments) -> None:
        started = time.perf_counter()
        save(*arguments)
        spent.append(time.perf_counter() - started)

    def timed_commit(*arguments) -> None:
        started = time.thread_time()
        commit(*arguments)
        spent.append(time.thread_time() - started)

    Checkpoints.save, Checkpoints._commit = timed_save, timed_commit
    words = ["algo=dqn", "env=CartPole-v1", "tuned=none", f"total_steps={int(seconds * 800)}", "final_eval_episodes=5"]
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = hydra.compose("config", words, return_hydra_config=True)
        config = parse_composed(composed).config
    result = run(config, directory)
    wall = result["wall_seconds"]
    print(
        f"{len(spent) // 2} checkpoints in {wall:.0f} s, {result['sps']:,.0f} steps per second: "
        f"{sum(spent):.3f} s, {100 * sum(spent) / wall:.2f} % of the time"
    )


if __name__ == "__main__":
    main()
