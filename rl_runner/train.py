"""The loop: act, store, learn, evaluate, log, all counted in environment steps."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rl_runner.config.schema import Config
from rl_runner.envs import Envs, Spec
from rl_runner.evaluate import Evaluator
from rl_runner.logger import Averages
from rl_runner.optim import linear_decay, optimizers
from rl_runner.protocols import Agent, Replay


@dataclass
class Run:
    """The parts of a run and where it stands."""

    config: Config
    envs: Envs
    agent: Agent
    replay: Replay
    evaluator: Evaluator
    averages: Averages
    warm_up: torch.Generator
    step: int = 0  # environment steps
    updates: int = 0
    training_seconds: float = 0.0  # evaluations excluded
    finished_episodes: list[tuple[float, int]] = field(default_factory=list)  # (return, length) since the last row


def train(
    run: Run, update: Callable[[int], None], on_row: Callable[[dict[str, float]], None], after_step: Callable[[], None]
) -> None:
    """Train to `total_steps`: `update(step)` learns once, `on_row` takes logged rows, `after_step` may save or stop."""
    config, envs, agent, replay = run.config, run.envs, run.agent, run.replay
    random_action = uniform_policy(envs.spec, config.num_envs, run.warm_up)
    stopwatch = Stopwatch(run)
    while run.step < config.total_steps:
        before, obs = run.step, envs.obs
        action = random_action() if before < config.learning_starts else agent.explore(obs, before, envs.first)
        result = envs.step(action)
        replay.add(obs, action, result.reward, result.terminated, result.truncated, result.next_obs)
        run.step += config.num_envs
        run.finished_episodes += result.episodes

        for _ in range(updates_due(config, agent.batch_size, before, run.step)):
            update(run.step)
            run.updates += 1

        row: dict[str, float] = {}
        if crossed(config.log_every, before, run.step):
            row |= training_row(run, stopwatch.read())
        if crossed(config.eval_every, before, run.step) and run.step < config.total_steps:
            with stopwatch.paused():
                row |= run.evaluator(agent, config.eval_episodes)[0]
        if row:
            on_row(row)
        after_step()
    stopwatch.read()


def updates_due(config: Config, batch_size: int, before: int, step: int) -> int:
    """How many updates follow the environment steps (before, step]."""
    start = max(before, config.learning_starts, batch_size - 1)  # a first batch must be there
    return config.updates * max(0, step // config.update_every - start // config.update_every)


def crossed(every: int, before: int, step: int) -> bool:
    """Whether a multiple of `every` lies in (before, step]; 0 means never."""
    return every > 0 and step // every > before // every


def uniform_policy(spec: Spec, num_envs: int, stream: torch.Generator) -> Callable[[], Tensor]:
    """Uniformly random actions `[N]` or `[N, act]`."""
    if spec.num_actions is not None:
        return lambda: torch.randint(spec.num_actions or 0, (num_envs,), generator=stream)
    return lambda: torch.rand(num_envs, spec.action_dim or 0, generator=stream) * 2 - 1


def training_row(run: Run, speed: dict[str, float]) -> dict[str, float]:
    """What has happened since the last row, by tag."""
    row = run.averages.read() | schedules(run) | speed
    if episodes := run.finished_episodes:
        row["charts/episodic_return"] = sum(total for total, _ in episodes) / len(episodes)
        row["charts/episodic_length"] = sum(length for _, length in episodes) / len(episodes)
        episodes.clear()
    return row


def schedules(run: Run) -> dict[str, float]:
    """What may change on schedule, by tag: ε or noise scale of an agent that tells, a learning rate that falls."""
    values: dict[str, float] = getattr(run.agent, "exploration", lambda step: {})(run.step)
    if run.config.lr_schedule == "linear" and optimizers(run.agent) and "lr" in run.config.optimizer:
        values["charts/learning_rate"] = run.config.optimizer["lr"] * linear_decay(run.step, run.config.total_steps)
    return values


class Stopwatch:
    """Steps and updates per second since the last reading, evaluations excluded."""

    def __init__(self, run: Run):
        self.run = run
        self.since, self.step, self.updates = time.perf_counter(), run.step, run.updates

    def read(self) -> dict[str, float]:
        now = time.perf_counter()
        seconds = max(now - self.since, 1e-9)
        speed = {
            "charts/SPS": (self.run.step - self.step) / seconds,
            "charts/updates_per_second": (self.run.updates - self.updates) / seconds,
        }
        self.run.training_seconds += now - self.since
        self.since, self.step, self.updates = now, self.run.step, self.run.updates
        return speed

    @contextmanager
    def paused(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.since += time.perf_counter() - started
