"""Evaluation beside training: the same numbers, in the same order, whatever becomes of the process that plays."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from killing import WALL_CLOCK

from rl_runner import beside
from rl_runner.beside import Beside, choose, holdings
from rl_runner.config.schema import Config
from rl_runner.errors import RunFailed
from rl_runner.logger import Logger
from rl_runner.machine import CORES
from rl_runner.persistence import METRICS, RESULT, read_json
from rl_runner.run import run

pytestmark = pytest.mark.skipif(not beside.PROCESS.exists(), reason="only Linux can")

Configure = Callable[..., Config]
CPU = torch.device("cpu")
WORDS = (
    "tuned=none", "total_steps=120", "learning_starts=20", "log_every=20", "eval_every=30", "eval_episodes=2",
    "final_eval_episodes=2",
)  # fmt: skip
SMALL = ("network.hidden=[8]", "algo.batch_size=8", "replay.capacity=100")


def taken(work: Callable[[], Any]) -> Beside:
    return Beside(work, lambda answer: answer)


def test_a_fork_answers_with_what_it_was_at_that_time() -> None:
    values = [1.0]
    answer = taken(lambda: {"sum": sum(values), "nan": float("nan"), "third": 1 / 3})
    values.append(2.0)
    result = answer.result
    assert result["sum"] == 1.0
    assert result["third"] == 1 / 3
    assert np.isnan(result["nan"])
    assert answer.result is result
    assert answer.ready


def test_what_goes_wrong_in_the_fork_is_told_here() -> None:
    def fail(error: BaseException) -> None:
        raise error

    with pytest.raises(RunFailed, match=r"^no such door$"):
        _ = taken(lambda: fail(RunFailed("no such door"))).result
    with pytest.raises(RunFailed, match=r"^ValueError: x$"):
        _ = taken(lambda: fail(ValueError("x"))).result
    with pytest.raises(RunFailed, match=r"exit code -9.*eval_process=same"):
        _ = taken(lambda: os.kill(os.getpid(), signal.SIGKILL)).result


def test_signals_are_left_to_the_run() -> None:
    def work() -> str:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
            os.kill(os.getpid(), signum)
        return "done"

    assert taken(work).result == "done"


def test_rows_keep_their_order_and_wait_for_their_evaluations(tmp_path: Path) -> None:
    shown: list[int] = []
    logger = Logger(tmp_path, {}, show=lambda step, row: shown.append(step))
    logger.write(1, {"a": 1.0}, taken(lambda: time.sleep(0.5) or {"b": 2.0}))
    logger.write(2, {"a": 3.0})
    assert shown == []
    logger.sync()
    assert shown == [1, 2]
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert rows == [{"step": 1, "a": 1.0, "b": 2.0}, {"step": 2, "a": 3.0}]
    logger.write(3, {}, evaluation := taken(lambda: {"b": 4.0}))
    while not evaluation.ready:
        time.sleep(0.01)
    logger.catch_up()
    assert shown == [1, 2, 3]
    logger.close()


@pytest.mark.parametrize("words", [
    ("algo=sac", "env=Pendulum-v1", *SMALL), ("algo=ddqn", "env=CartPole-v1", "eval_epsilon=0.3", *SMALL),
    ("algo=q_learning", "env=FrozenLake-v1"),
])  # fmt: skip
def test_the_same_rows_beside_training_and_between_its_steps(
    words: tuple[str, ...], configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = []
    for where in ("separate", "same"):
        result = run(configure(*WORDS, *words, f"eval_process={where}"), tmp_path / where)
        rows = [json.loads(line) for line in (tmp_path / where / METRICS).read_text().splitlines()]
        kept = [{tag: value for tag, value in row.items() if tag not in WALL_CLOCK} for row in rows]
        outcomes.append((kept, result["params_sha256"], result["episode_returns"]))
    assert outcomes[0] == outcomes[1]
    assert [row["step"] for row in outcomes[0][0] if "eval/return_mean" in row] == [30, 60, 90, 120]
    said = " ".join(capsys.readouterr().out.split())
    assert said.index("beside training") < said.index("between steps of training")


def test_where_no_process_can_be_made_the_run_evaluates_itself(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    before = holdings()
    with pytest.raises(BlockingIOError):
        taken(lambda: None)
    assert holdings() == before
    run(configure(*WORDS, "algo=q_learning", "env=FrozenLake-v1", "eval_process=separate"), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows if "eval/return_mean" in row] == [30, 60, 90, 120]


class Heavy(gym.Env):
    """Breaks in its third step where it is evaluated; may hold a file, a thread or a process."""

    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, breaks: bool = False, holds: str | None = None):
        self.breaks, self.home = breaks, os.getpid()
        if holds == "socket":
            self.held: Any = socket.socketpair()
        elif holds == "process":
            self.held = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        elif holds == "thread":
            self.over = threading.Event()
            self.held = threading.Thread(target=self.over.wait, daemon=True)
            self.held.start()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.breaks and self.steps == 3 and os.getpid() != self.home:
            raise ValueError("not here")
        return np.zeros(1, np.float32), 1.0, self.steps == 5, False, {}

    def close(self) -> None:
        held = getattr(self, "held", None)
        if isinstance(held, subprocess.Popen):
            held.communicate()
        elif isinstance(held, threading.Thread):
            self.over.set()
            held.join()
        for each in held if isinstance(held, tuple) else ():
            each.close()


@pytest.fixture(autouse=True)
def heavy() -> Iterator[None]:
    gym.register("Heavy-v0", Heavy)
    yield
    del gym.registry["Heavy-v0"]


def test_an_evaluation_that_breaks_ends_the_run_with_its_words(configure: Configure, tmp_path: Path) -> None:
    words = ("algo=dqn", "env=Heavy-v0", "+env.kwargs.breaks=true", "eval_process=separate", *WORDS, *SMALL)
    with pytest.raises(RunFailed, match="not here"):
        run(configure(*words), tmp_path / "run")
    assert not (tmp_path / "run" / RESULT).exists()
    assert read_json(tmp_path / "run" / "status.json")["state"] == "failed"


@pytest.mark.parametrize("held", ["socket", "thread", "process"])
def test_what_a_fork_would_share_keeps_evaluation_in_the_process(
    held: str, configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(
        "algo=dqn", "env=Heavy-v0", f"+env.kwargs.holds={held}", "dry_run=true", "eval_process=separate", *WORDS, *SMALL
    )
    run(config, tmp_path / "run")
    assert "(the environment holds files, threads or processes)" in " ".join(capsys.readouterr().out.split())


def test_holdings_are_files_threads_and_processes(tmp_path: Path) -> None:
    before = holdings()
    assert holdings() == before
    with (tmp_path / "file").open("w"):
        assert len(holdings() - before) == 1
    assert holdings() == before


def test_what_ends_while_it_is_listed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = beside._listed
    monkeypatch.setattr(beside, "_listed", lambda place: [*listed(place), place / "999999999"])
    assert not any("999999999" in each for each in holdings())


def test_the_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setenv(CORES, "2")
    assert choose("auto", CPU, held=False) == (True, "beside training")
    assert not choose("same", CPU, held=False)[0]
    assert not choose("separate", torch.device("cuda"), held=False)[0]
    assert not choose("separate", CPU, held=True)[0]
    monkeypatch.setenv(CORES, "1")
    assert choose("auto", CPU, held=False) == (False, "between steps of training (there is no second core)")
    assert choose("separate", CPU, held=False)[0]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert not choose("separate", CPU, held=False)[0]
