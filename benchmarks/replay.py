"""Adds and samples per second of each replay, beside Stable-Baselines3's buffer, in one run and interleaved.

Needs stable-baselines3 (extra `bench`). HalfCheetah's shapes, a full replay of 1 000 000, batches of 256, one thread:

    python benchmarks/replay.py          # a table of replays
    python benchmarks/replay.py --sac    # also what a replay adds to a compiled SAC update of width 256
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

from rl_runner.accelerate import build_update
from rl_runner.algos.sac import SAC
from rl_runner.envs import Spec
from rl_runner.logger import Averages
from rl_runner.networks import MLP
from rl_runner.replay import Batch, PrioritizedReplay, UniformReplay

SPEC = Spec((17,), torch.float32, None, None, 6, 1, 1000)
CAPACITY = 1_000_000
BATCH = 256
NUM_ENVS = 10  # of a full replay, which is then filled more quickly
PER = {"alpha": 0.6, "beta": 0.4, "beta_end": 1.0, "epsilon": 1e-6}
KINDS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "uniform": (UniformReplay, {}),
    "uniform, n_step=3": (UniformReplay, {"n_step": 3}),
    "uniform, deduplicate": (UniformReplay, {"deduplicate": True}),
    "uniform, deduplicate, n_step=3": (UniformReplay, {"deduplicate": True, "n_step": 3}),
    "prioritized": (PrioritizedReplay, PER),
    "prioritized, n_step=3": (PrioritizedReplay, PER | {"n_step": 3}),
    "prioritized, deduplicate, n_step=3": (PrioritizedReplay, PER | {"deduplicate": True, "n_step": 3}),
}
COMPILED = ("uniform", "prioritized", "prioritized, deduplicate, n_step=3")


def make(kind: str, num_envs: int, capacity: int = CAPACITY) -> Any:
    replay, keys = KINDS[kind]
    wired = {"spec": SPEC, "num_envs": num_envs, "gamma": 0.99, "total_steps": 10**6, "seed": 0}
    return replay(**wired, **keys, device="cpu", directory=None, capacity=capacity)


def full(kind: str) -> Any:
    """As it is behind its first wrap-around, with episodes of 1000 steps."""
    replay = make(kind, NUM_ENVS)
    for step in range(int(1.1 * CAPACITY) // NUM_ENVS):
        replay.add(*rows(NUM_ENVS, truncated=step % 1000 == 999))
    return replay


def rows(count: int, truncated: bool = False) -> tuple[torch.Tensor, ...]:
    """Random transitions (obs, action, reward, terminated, truncated, next_obs)."""
    never, ended = torch.zeros(count, dtype=torch.bool), torch.full((count,), truncated)
    return torch.randn(count, 17), torch.rand(count, 6), torch.randn(count), never, ended, torch.randn(count, 17)


def stable_baselines3(buffer_class: type[ReplayBuffer], **keys: Any) -> ReplayBuffer:
    buffer = buffer_class(CAPACITY, spaces.Box(-9, 9, (17,)), spaces.Box(-1, 1, (6,)), device="cpu", **keys)
    for column in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        column[:] = 1.0
    buffer.dones[:], buffer.timeouts[:], buffer.full = 0.0, 0.0, True
    return buffer


PEERS = {
    "Stable-Baselines3": lambda: stable_baselines3(ReplayBuffer),
    "Stable-Baselines3, n_steps=3": lambda: stable_baselines3(NStepReplayBuffer, n_steps=3, gamma=0.99),
}


def adders() -> Iterator[tuple[str, Callable[[], Any]]]:
    """One transition at a time, into a replay that has room."""
    row = rows(1)
    obs, action, reward, done, _, next_obs = (column.numpy() for column in row)
    for name, make_peer in PEERS.items():
        buffer = make_peer()
        yield name, lambda buffer=buffer: buffer.add(obs, next_obs, action, reward, done, [{}])
    for kind in KINDS:
        replay = make(kind, num_envs=1)
        yield kind, lambda replay=replay: replay.add(*row)


def samplers() -> Iterator[tuple[str, Callable[[], Any]]]:
    """A batch from a full replay; a prioritized one also takes new priorities for it."""
    for name, make_peer in PEERS.items():
        buffer = make_peer()
        yield name, lambda buffer=buffer: buffer.sample(BATCH)
    td_error = torch.randn(BATCH)
    for kind in KINDS:
        replay = full(kind)

        def sample(replay: Any = replay) -> None:
            replay.prioritize(replay.gather(*replay.draw(BATCH, 0)).index, td_error)

        yield kind, sample


def microseconds(contestants: dict[str, Callable[[], Any]], calls: int, rounds: int = 15) -> dict[str, float]:
    """CPU time per call: the median over rounds, in each of which every contestant has its turn."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            started = time.thread_time()
            for _ in range(calls):
                call()
            times[name].append((time.thread_time() - started) / calls * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}


def replay_table() -> None:
    adding, sampling = microseconds(dict(adders()), calls=2000), microseconds(dict(samplers()), calls=200)
    print("| replay | add, µs | adds/s | sample 256, µs | samples/s | bytes per transition |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in adding:
        if name in KINDS:
            replay, keys = KINDS[name]
            each = f"{replay.nbytes(SPEC, 1, capacity=CAPACITY, **keys) / CAPACITY:.0f}"
        else:
            columns = [column for column in vars(PEERS[name]()).values() if isinstance(column, np.ndarray)]
            each = f"{sum(column.nbytes for column in columns) / CAPACITY:.0f}"
        add, sample = adding[name], sampling[name]
        print(f"| {name} | {add:.1f} | {1e6 / add:,.0f} | {sample:.0f} | {1e6 / sample:,.0f} | {each} |")


class FixedBatch:
    """Always the same batch, for what an update costs by itself."""

    def __init__(self, batch: Batch):
        self._batch = batch

    def draw(self, batch_size: int, step: int) -> tuple[torch.Tensor, ...]:
        return tuple(self._batch)

    def gather(self, *columns: torch.Tensor) -> Batch:
        return Batch(*columns)

    def prioritize(self, index: torch.Tensor, td_error: torch.Tensor) -> None:
        pass


def sac_updates() -> Iterator[tuple[str, Callable[[], Any]]]:
    """A compiled SAC update of width 256 with each replay, and with a batch that is simply there."""
    uniform = full("uniform")
    fixed: Any = FixedBatch(uniform.gather(*uniform.draw(BATCH, 0)))
    for name, replay in [("no replay", fixed), *((kind, full(kind)) for kind in COMPILED)]:
        update = build_update(sac(), replay, Averages(), "compile")
        update(0)
        yield name, lambda update=update: update(0)


def sac() -> SAC:
    keys: dict[str, Any] = {"alpha": "auto", "initial_alpha": 1.0, "target_entropy": None, "max_grad_norm": None}
    keys |= {"actor_lr": None, "alpha_lr": None, "log_std_min": -5.0, "log_std_max": 2.0, "batch_size": BATCH}
    return SAC(
        spec=SPEC,
        network=lambda **sizes: MLP(hidden=[256, 256], activation="relu", norm="none", **sizes),
        optimizer=lambda params: torch.optim.Adam(params, lr=3e-4),
        seed=0,
        device="cpu",
        gamma=0.99,
        tau=0.005,
        **keys,
    )


def sac_table() -> None:
    updating = microseconds(dict(sac_updates()), calls=50)
    alone = updating["no replay"]
    print("\n| compiled SAC update, width and batch 256 | ms | the replay's share |\n|---|---:|---:|")
    for name, duration in updating.items():
        print(f"| {name} | {duration / 1000:.2f} | {duration / alone - 1:+.1%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sac", action="store_true", help="measure compiled SAC updates, too (about two minutes)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    replay_table()
    if arguments.sac:
        sac_table()
