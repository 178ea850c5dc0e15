"""The loop: act, store, learn, evaluate, log, all counted in environment steps."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from rl_runner.beside import Beside
from rl_runner.config.schema import Config
from rl_runner.envs import Envs
from rl_runner.evaluate import Evaluator
from rl_runner.explore import uniform_policy
from rl_runner.logger import Averages
from rl_runner.normalize import Normalizer
from rl_runner.optim import lr_factor, optimizers
from rl_runner.protocols import Agent, Replay


class Stopwatch:
    """Seconds of training, evaluations excluded, and the speed since the last row; both outlive a kill."""

    def __init__(self) -> None:
        self.row = (0.0, 0, 0)  # seconds, steps and updates at the last row
        self._before, self._since = 0.0, math.nan  # seconds until it was last started, and when that was

    @property
    def seconds(self) -> float:
        return self._before if math.isnan(self._since) else self._before + time.perf_counter() - self._since

    def set(self, seconds: float, row: tuple[float, int, int]) -> None:
        """Stand still at so many seconds."""
        self._before, self._since, self.row = seconds, math.nan, row

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        self.set(self.seconds, self.row)

    def read(self, step: int, updates: int) -> dict[str, float]:
        """Steps and updates per second since the last row; this is the next one."""
        (seconds, steps, updates_then), self.row = self.row, (self.seconds, step, updates)
        elapsed = max(self.seconds - seconds, 1e-9)
        return {
            "charts/SPS": (step - steps) / elapsed,
            "charts/updates_per_second": (updates - updates_then) / elapsed,
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.stop()
        yield
        self.start()


@dataclass
class Run:
    """The parts of a run and where it stands."""

    PARTS = ("step", "updates", "agent", "replay", "averages", "warm_up")  # what a checkpoint holds as it is

    config: Config
    envs: Envs
    agent: Agent
    replay: Replay
    evaluator: Evaluator
    averages: Averages
    warm_up: torch.Generator
    normalizer: Normalizer | None = None
    renew: Callable[[int], None] = lambda step: None  # lets the agent begin anew at a step of its `reset_at`
    step: int = 0  # environment steps
    updates: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    finished_episodes: list[tuple[float, int]] = field(default_factory=list)  # (return, length) since the last row
    beside: bool = False  # whether evaluations are played beside training


Row = dict[str, float]
Write = Callable[[int, Row, Beside | None], None]  # logs the row of a step, and an evaluation of it still to come


def train(run: Run, update: Callable[[int], None], write: Write, after_step: Callable[[], None]) -> None:
    """Train to `total_steps`: `update(step)` learns once, `write` logs, `after_step` may save or stop.

    The row of the last step is left to the caller, whose final evaluation belongs into it.
    """
    config, envs, agent, replay = run.config, run.envs, run.agent, run.replay
    clip, normalizer = config.clip_rewards, run.normalizer
    random_action = uniform_policy(envs.spec, config.num_envs, run.warm_up)
    run.stopwatch.start()
    while run.step < config.total_steps:
        before, obs, first = run.step, envs.obs, envs.first
        action = random_action() if before < config.learning_starts else agent.explore(obs, before, first)
        result = envs.step(action)
        reward = result.reward if clip is None else result.reward.clamp(-clip, clip)
        replay.add(obs, action, reward, result.terminated, result.truncated, result.next_obs)
        if normalizer:
            normalizer.count(obs, first, reward, result)
        run.step += config.num_envs
        run.finished_episodes += result.episodes

        for at in getattr(agent, "reset_at", ()):
            if before < at <= run.step:
                run.renew(at)
        due = updates_due(config, agent.batch_size, before, run.step)
        if due and run.updates == 0:
            run.stopwatch.read(before, 0)  # random steps are fast, and would hide how fast it learns
        for _ in range(due):
            update(run.step)
            run.updates += 1

        if run.step < config.total_steps:
            log_due(run, before, write)
        after_step()
    run.stopwatch.stop()


def log_due(run: Run, before: int, write: Write) -> None:
    """Write what is to be logged after the environment steps (before, step], if anything."""
    row: Row = {}
    evaluation = None
    if crossed(run.config.log_every, run.stopwatch.row[1], run.step):
        row |= training_row(run)
        if doubt := getattr(run.agent, "doubt", lambda row: None)(row):
            print(doubt, file=sys.stderr)
    if crossed(run.config.eval_every, before, run.step):
        evaluation = run.evaluator.beside(run.agent, run.config.eval_episodes) if run.beside else None
        if evaluation is None:
            with run.stopwatch.paused():
                row |= run.evaluator(run.agent, run.config.eval_episodes)[0]
    if row or evaluation:
        write(run.step, row, evaluation)


def updates_due(config: Config, batch_size: int, before: int, step: int) -> int:
    """How many updates follow the environment steps (before, step]."""
    start = max(before, config.learning_starts, batch_size - 1)  # a first batch must be there
    return config.updates * max(0, step // config.update_every - start // config.update_every)


def crossed(every: int, before: int, step: int) -> bool:
    """Whether a multiple of `every` lies in (before, step]; 0 means never."""
    return every > 0 and step // every > before // every


def training_row(run: Run) -> Row:
    """What has happened since the last row, by tag."""
    row = run.averages.read() | schedules(run) | run.stopwatch.read(run.step, run.updates)
    if episodes := run.finished_episodes:
        row["charts/episodic_return"] = sum(total for total, _ in episodes) / len(episodes)
        row["charts/episodic_length"] = sum(length for _, length in episodes) / len(episodes)
        episodes.clear()
    return row


def schedules(run: Run) -> dict[str, float]:
    """What may change on schedule, by tag: ε or noise scale of an agent that tells, a learning rate that falls."""
    values: dict[str, float] = getattr(run.agent, "exploration", lambda step: {})(run.step)
    config = run.config
    if config.lr_schedule != "constant" and optimizers(run.agent) and "lr" in config.optimizer:
        factor = lr_factor(config.lr_schedule, config.lr_end, config.total_steps, run.step)
        values["charts/learning_rate"] = config.optimizer["lr"] * factor
    return values
