"""Speed from outside: any agent's update and its choice of actions, eager or as graphs; knows no algorithm.

One graph holds the whole update: gathering from the replay, targets, losses, gradients, optimizers, target networks and
new priorities. Random numbers are drawn outside it, because a graph's own would differ from eager ones.
An agent can be captured if it has a `learn(batch, *noise)` method of tensors that its `update(batch, step)` calls; its
choice of actions too, if `explore` calls a `behave(obs, *noise)`.
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rl_runner.capture import CpuGraphs, CudaGraphs, compiled, on_cpu
from rl_runner.logger import Averages
from rl_runner.optim import optimizers, traceable
from rl_runner.protocols import Agent, Replay

Mode = Literal["eager", "compile", "cudagraph"]
Wanted = Literal["auto", "eager", "compile", "cudagraph"]
Update = Callable[[int], None]

UPDATES_WORTH_COMPILING = 15_000  # below, compiling (10 to 30 s) takes longer than it saves


def choose(wanted: Wanted, agent: Agent, replay: Replay, device: torch.device, num_updates: int) -> tuple[Mode, str]:
    """The mode for `accelerate=wanted` and why, from config, machine and versions alone."""
    device = torch.device(getattr(agent, "device", device))  # a table stays on the CPU
    if wanted == "eager":
        return "eager", "as configured"
    if obstacle := _obstacle(agent):
        return "eager", obstacle
    if wanted == "auto" and num_updates < UPDATES_WORTH_COMPILING:
        return "eager", f"{num_updates:,} updates are too few to be worth compiling"
    if wanted == "cudagraph":
        if device.type != "cuda":
            return "compile", f"{type(agent).__name__} learns on the CPU, where there are no CUDA graphs"
        if getattr(replay, "grows", False):
            return "compile", "a deduplicated replay moves its final observations, which a CUDA graph cannot follow"
    if wanted != "auto":
        return wanted, "as configured"
    unproven = "; CUDA graphs are unmeasured: accelerate=cudagraph" if device.type == "cuda" else ""
    return "compile", f"{num_updates:,} updates are worth compiling{unproven}"


def build_update(agent: Agent, replay: Replay, averages: Averages, mode: Mode, precision: str = "highest") -> Update:
    """A function that does one update at the given environment step and adds its metrics to `averages`.

    With a graph, the agent then explores by a graph, too. With `bfloat16` it learns by products of that precision; it
    acts by those of float32.
    """
    if precision == "bfloat16":
        learns = "learn" if hasattr(agent, "learn") else "update"
        setattr(agent, learns, in_bfloat16(getattr(agent, learns), torch.device(getattr(agent, "device", "cpu"))))
    if mode != "eager":
        return _graph(agent, replay, averages, mode)

    @flushing
    def update(step: int) -> None:
        batch = replay.gather(*replay.draw(agent.batch_size, step))
        metrics, td_error = agent.update(batch, step)
        replay.prioritize(batch.index, td_error)
        averages.add(*_stacked(metrics))

    return update


def flushing(update: Update) -> Update:
    """`update` with subnormal numbers, those below 1.2e-38, as 0.

    A unit that is off has gradients of 0, so Adam's means of them fall until they are subnormal and stay so, and a
    processor takes a hundred times as long for such a number. Only while learning: environments share the process.
    """

    def call(step: int) -> None:
        torch.set_flush_denormal(True)
        try:
            update(step)
        finally:
            torch.set_flush_denormal(False)

    return call


def in_bfloat16(learn: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`learn` with wide matrix products in bfloat16 and all else in float32: weights, targets, losses, statistics."""

    def call(*arguments: Any) -> Any:
        # Without the cache, from which eager code would take weights of before the optimizer's step.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            return learn(*arguments)

    return call


def _graph(agent: Any, replay: Replay, averages: Averages, mode: Mode) -> Update:
    learn = agent.learn

    def whole_update(drawn: tuple[Tensor, ...], *args: Any) -> tuple[tuple[str, ...], Tensor]:
        batch = replay.gather(*drawn)
        metrics, td_error = learn(batch, *args)
        replay.prioritize(batch.index, td_error)
        return _stacked(metrics)

    if "torch._dynamo" in sys.modules:  # which takes two seconds to import, at the first call of a graph
        torch._dynamo.reset()  # what earlier runs of this process compiled would count against a limit
    # With it PyTorch 2.13 takes a 0-dimensional float64 parameter for a constant: α would never move, without a word.
    os.environ.setdefault("TENSORIFY_PYTHON_SCALARS", "0")
    device = torch.device(getattr(agent, "device", "cpu"))
    graphs: Any = CpuGraphs if device.type == "cpu" else compiled
    if mode == "cudagraph":
        graphs = partial(CudaGraphs, device=device)
    if getattr(replay, "grows", False):
        agent.learn = compiled(whole_update, on_cpu if device.type == "cpu" else "inductor")
    else:
        agent.learn = graphs(whole_update)
    if hasattr(agent, "behave"):
        agent.behave = graphs(agent.behave)

    @flushing
    def update(step: int) -> None:
        averages.add(*agent.update(replay.draw(agent.batch_size, step), step))

    return update


def _stacked(metrics: dict[str, Tensor]) -> tuple[tuple[str, ...], Tensor]:
    return tuple(metrics), torch.stack(tuple(metrics.values())).double()


def _obstacle(agent: Any) -> str | None:
    """Why this agent on this machine cannot be compiled, in words; None if it can."""
    if not hasattr(agent, "learn"):
        return f"{type(agent).__name__} has no learn() to capture"
    foreign = [optimizer for optimizer in optimizers(agent) if not traceable(optimizer)]
    if foreign:
        return f"{type(foreign[0]).__name__} is no optimizer that can be captured"
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        return "no C++ compiler was found (install g++ to compile)"
    return None
