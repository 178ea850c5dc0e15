"""Environments in processes of their own: the same numbers as in turn, whatever becomes of the processes."""

import gc
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces
from killing import assert_same, kill, newest_number, run_with_kills, start

from rl_runner.config.schema import Config, EnvConfig
from rl_runner.envs import Envs, process
from rl_runner.errors import RunFailed, UserError
from rl_runner.persistence import CHECKPOINT, STATUS, read_json
from rl_runner.persistence.checkpoint import newest
from rl_runner.run import run

Configure = Callable[..., Config]
SMALL = (
    "tuned=none", "network.hidden=[8]", "algo.batch_size=8", "replay.capacity=300", "total_steps=420", "num_envs=3",
    "learning_starts=60", "log_every=60", "eval_every=120", "eval_episodes=2", "final_eval_episodes=3",
    "update_every=3", "checkpoint_every=60",
)  # fmt: skip
APART = "vectorization=async"
# A stateful one, which is made anew for every episode; one that is wrapped and stacked; one with numbered states.
RUNS = {
    "stateful": ("algo=td3", "env=BipedalWalker-v3", "env.max_episode_steps=40"),
    "wrapped": (
        "algo=ddqn", "env=Pendulum-v1", "env.frame_stack=2", "env.max_episode_steps=35", "replay.deduplicate=true",
        "env.wrappers=[{_target_: gymnasium.wrappers.DiscretizeAction, bins: 5}, "
        "{_target_: gymnasium.wrappers.StickyAction, repeat_action_probability: 0.25}]",
    ),
    "numbered": ("algo=dqn", "env=Taxi-v4", "env.max_episode_steps=50", "replay=prioritized", "replay.n_step=3"),
}  # fmt: skip


class Walk(gym.Env):
    """A random walk of 20 steps that does what `does` says in its `at`-th step, where it is in a process of its own."""

    action_space = spaces.MultiDiscrete([2, 3])
    observation_space = spaces.Dict({"place": spaces.Box(-99, 99, (2,)), "count": spaces.Discrete(99)})

    def __init__(self, does: str = "nothing", at: int = 1, note: str = ""):
        self.does, self.at, self.note, self.steps, self.home = does, at, Path(note), 0, Walk.parent
        self.episodes = 0

    parent = 0  # where the tests run

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.count, self.place = 0, self.np_random.normal(size=2).astype(np.float32)
        self.episodes += 1
        return self.seen(), {}

    def seen(self) -> dict[str, Any]:
        return {"place": self.place, "count": self.count}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.steps += 1
        if self.steps == self.at and os.getpid() != self.home:
            DOES[self.does](self)
        noise = {"global": np.random.normal, "python": random.gauss}.get(self.does, self.np_random.normal)(0.0, 1.0)
        if self.does == "remember":
            noise = float(self.episodes)
        self.place = (self.place + action + noise).astype(np.float32)
        return self.seen(), float(self.place.sum()) / 3, self.count == 20, False, {}

    def close(self) -> None:
        if self.note.name:
            (self.note / f"{os.getpid()}").touch()


def raising(error: BaseException) -> Callable[[Walk], None]:
    def raise_it(env: Walk) -> None:
        raise error

    return raise_it


def sleeping(env: Walk) -> None:
    (env.note / f"{os.getpid()}").touch()
    time.sleep(600)


def forking(env: Walk) -> None:
    """Leave a process behind that holds all that is open."""
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os._exit(5)


def meddling(env: Walk) -> None:
    os.chdir("/")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    env.count = 19  # reset looks at what is left behind


DOES: dict[str, Callable[[Walk], Any]] = {
    "exit": lambda env: os._exit(3),
    "kill": lambda env: os.kill(os.getpid(), signal.SIGKILL),
    "fork": forking,
    "raise": raising(ValueError("no\nway")),
    "leave": raising(SystemExit(4)),
    "interrupt": raising(KeyboardInterrupt()),
    "sleep": sleeping,
    "meddle": meddling,
} | dict.fromkeys(("nothing", "global", "python", "remember"), lambda env: None)


class Waiting(gym.Env):
    """Takes 5 ms for a step."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(0, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(0.005)
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(Walk, "parent", os.getpid())
    gym.register("Walk-v0", Walk)
    gym.register("Waiting-v0", Waiting)
    yield
    del gym.registry["Walk-v0"], gym.registry["Waiting-v0"]


def walk(**kwargs: Any) -> EnvConfig:
    return EnvConfig(id="Walk-v0", kwargs=kwargs)


def workers(envs: Envs) -> list[psutil.Process]:
    return [psutil.Process(env._pid) for env in envs._seeded]


def children() -> set[int]:
    gc.collect()  # a run that failed may be in a circle of references
    return {child.pid for child in psutil.Process().children()}


def played(envs: Envs, steps: int, seed: int = 0) -> list[Any]:
    """All that so many steps give."""
    stream, found = np.random.default_rng(seed), []
    for _ in range(steps):
        if envs.spec.num_actions is None:
            action = stream.uniform(-1, 1, (envs.num_envs, envs.spec.action_dim or 0)).astype(np.float32)
        else:
            action = stream.integers(envs.spec.num_actions, size=envs.num_envs)
        step = envs.step(torch.from_numpy(action))
        found.append([part.numpy().tobytes() for part in (*step[:4], envs.obs, envs.first)])
        found.append(step.episodes)
    return found


def saved(envs: Envs) -> bytes:
    """What a checkpoint holds of them."""
    torch.save(envs.state_dict(), file := io.BytesIO())
    return file.getvalue()


CONFIGS = [
    (walk(), False),
    (walk(does="remember"), True),
    (EnvConfig(id="Walk-v0", frame_stack=3, max_episode_steps=7, observation_keys=["place"]), False),
    (EnvConfig(id="Pendulum-v1", max_episode_steps=30), False),
]


@pytest.mark.parametrize(("config", "rebuild"), CONFIGS)
def test_the_same_steps_and_checkpoints_which_either_goes_on_from(config: EnvConfig, rebuild: bool) -> None:
    both = [Envs(config, 3, 5, rebuild=rebuild, apart=apart) for apart in (False, True)]
    for steps in (1, 33, 12):
        one, other = (played(envs, steps) for envs in both)
        assert one == other
        assert saved(both[0]) == saved(both[1])
        states = [torch.load(io.BytesIO(saved(envs)), weights_only=True) for envs in both]
        both = [Envs(config, 3, 5, rebuild=rebuild, apart=apart) for apart in (True, False)]
        for envs, state in zip(both, states, strict=True):
            assert envs.load_state_dict(state) == []
        assert torch.equal(both[0].obs, both[1].obs)
    one, other = (played(envs, 30) for envs in both)
    assert one == other


def test_an_episode_that_does_not_come_back_is_dropped_there_too() -> None:
    before = Envs(walk(), 3, 0, apart=True)
    played(before, 5)
    state = before.state_dict()
    state["return"][1] += 1e-9
    both = [Envs(walk(), 3, 0, apart=apart) for apart in (False, True)]
    lines = [envs.load_state_dict(state) for envs in both]
    assert lines[0] == lines[1]
    assert len(lines[0]) == 1
    one, other = (played(envs, 30) for envs in both)
    assert one == other


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_the_same_run_also_where_it_is_killed(words: tuple[str, ...], configure: Configure, tmp_path: Path) -> None:
    pytest.importorskip("Box2D")
    paths = [tmp_path / name / "run" for name in ("sync", "async", "killed")]
    run(configure(*SMALL, *words), paths[0])
    run(apart := configure(*SMALL, *words, APART), paths[1])
    assert run_with_kills(apart, paths[2], kills=2, pause=0.3, rng=random.Random(0)) > 0
    for path in paths[1:]:
        assert_same(paths[0], path)


def words_for(does: str, at: int) -> tuple[str, ...]:
    return ("algo=dqn", "env=Walk-v0", f"+env.kwargs.does={does}", f"+env.kwargs.at={at}", *SMALL, APART)


@pytest.mark.parametrize(
    ("does", "line"),
    [
        ("exit", r"^the process of Walk-v0, environment 0, episode 2, step 4 has ended \(exit code 3\): rl-runner "
                 r"resume DIR goes on from the last checkpoint, and in one process with vectorization=sync$"),
        ("kill", r"has ended \(by SIGKILL, perhaps for want of memory\): rl-runner resume DIR"),
        ("fork", r"has ended \(exit code 5\): rl-runner resume DIR"),
        ("raise", r"^Walk-v0 raised ValueError: no way in step\(\) \(Walk-v0, environment 0, episode 2, step 5\)$"),
        ("leave", r"^Walk-v0 raised SystemExit: 4 in step\(\)"),
        ("interrupt", r"^Walk-v0 raised KeyboardInterrupt in step\(\)"),
    ],
)  # fmt: skip
def test_a_process_that_dies_is_one_line(does: str, line: str, configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=line) as told:
        run(configure(*words_for(does, 45)), tmp_path / "run")
    assert (told.value.code, len(str(told.value).splitlines())) == (1, 1)
    assert read_json(tmp_path / "run" / STATUS)["state"] == "failed"
    saved = newest(tmp_path / "run" / CHECKPOINT)
    assert saved is not None
    assert saved.step == 120


def test_it_goes_on_in_one_process_from_there(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(RunFailed):
        run(configure(*words_for("exit", 45)), tmp_path / "run")
    words = [word for word in words_for("exit", 45) if word != APART]
    for name in ("run", "undisturbed"):
        run(configure(*words), tmp_path / name)
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_no_process_outlives_the_environments_and_each_closes_its_own(tmp_path: Path) -> None:
    before = children()
    envs = Envs(walk(note=str(tmp_path)), 2, 0, apart=True)
    held = workers(envs)
    del envs
    assert children() == before
    assert {path.name for path in tmp_path.iterdir()} == {str(worker.pid) for worker in held}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_its_run(signum: int, configure: Configure, tmp_path: Path) -> None:
    config = configure("algo=dqn", "env=CartPole-v1", *SMALL, APART, "total_steps=1_000_000")
    process = start(config, tmp_path / "run")
    while newest_number(tmp_path / "run") < 1:
        time.sleep(0.01)
    held = psutil.Process(process.pid).children()
    assert len(held) == 3
    kill(process, signum)
    assert process.exitcode == (-9 if signum == signal.SIGKILL else 1)  # by an exception: Interrupted
    assert psutil.wait_procs(held, timeout=20)[1] == []


SLEEPS = """
import sys, test_async
import gymnasium as gym
from rl_runner.envs import Envs
gym.register("Walk-v0", test_async.Walk)
envs = Envs(test_async.walk(does="sleep", at=3, note=sys.argv[1]), 2, 0, apart=True)
print(*(env.pid for env in test_async.workers(envs)), flush=True)
test_async.played(envs, 3)
"""


@pytest.mark.skipif(not process.PROCESS.exists(), reason="elsewhere the step is finished first")
def test_a_process_in_the_middle_of_a_step_ends_with_its_run(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SLEEPS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path}) as parent:
        assert parent.stdout
        held = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        while len(list(tmp_path.iterdir())) < 2:
            assert parent.poll() is None
            time.sleep(0.01)
        parent.kill()
    assert len(held) == 2
    assert psutil.wait_procs(held, timeout=20)[1] == []


def test_signals_are_for_the_run_alone(tmp_path: Path) -> None:
    envs = Envs(walk(), 2, 0, apart=True)
    expected = played(Envs(walk(), 2, 0), 10)
    found = played(envs, 5)
    for worker in workers(envs):
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(worker.pid, signum)
    assert found + played_on(envs, 5) == expected


def played_on(envs: Envs, steps: int) -> list[Any]:
    """The steps that follow after the first five."""
    stream, found = np.random.default_rng(0), []
    for t in range(5 + steps):
        action = torch.from_numpy(stream.integers(6, size=2))
        if t >= 5:
            step = envs.step(action)
            found += [[part.numpy().tobytes() for part in (*step[:4], envs.obs, envs.first)], step.episodes]
    return found


def test_what_an_environment_does_to_its_process_is_put_back_and_said(capfd: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(process, "_said", set())
    before = process.values_of(process.EVERY_SETTING)
    envs = Envs(walk(does="meddle", at=3), 1, 0, apart=True)
    played(envs, 4)
    assert process.values_of(process.EVERY_SETTING) == before
    assert workers(envs)[0].cwd() == os.getcwd()
    assert capfd.readouterr().err.splitlines() == [
        f"warning: Walk-v0 changes {what}, which is not its own: put back"
        for what in ("the working directory", "signal handlers")
    ]


@pytest.mark.parametrize("does", ["global", "python"])
def test_the_global_streams_of_two_processes_differ(does: str) -> None:
    envs = Envs(walk(does=does), 2, 0, apart=True)
    start = envs.obs.clone()
    moved = envs.step(torch.zeros(2, dtype=torch.int64)).next_obs - start
    assert not torch.equal(moved[0], moved[1])


def test_a_step_that_waits_5_ms_is_2_5_times_as_fast_with_four() -> None:
    fastest = []
    for apart in (False, True):
        envs, action = Envs(EnvConfig(id="Waiting-v0"), 4, 0, apart=apart), torch.zeros(4, dtype=torch.int64)
        times = [time.perf_counter()]
        for _ in range(100):
            envs.step(action)
            times.append(time.perf_counter())
        fastest.append(np.sort(np.diff(times))[:10].mean())  # what the machine can do, whatever else it does
    assert fastest[0] >= 2.5 * fastest[1]


@pytest.mark.skipif(not process.PROCESS.exists(), reason="only Linux can evaluate beside training")
def test_the_run_says_it_and_still_evaluates_beside_training(rl_runner: Any) -> None:
    words = ("algo=dqn", "env=CartPole-v1", "num_envs=2", "dry_run=true", "eval_process=separate", "threads=1", APART)
    before = children()
    said = " ".join(" ".join(rl_runner(*words).out).split())
    assert "2 environments, each in a process of its own" in said
    assert "; beside training" in said
    assert children() == before


def test_a_single_environment_is_refused(rl_runner: Any) -> None:
    ended = rl_runner("algo=dqn", "env=CartPole-v1", APART)
    line = "vectorization=async: a single environment has none to play beside; add num_envs=4"
    assert (ended.code, ended.err) == (2, [line])


def test_too_many_processes_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, left = os.fork, iter([True])

    def full() -> int:
        if next(left, False):
            return fork()
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(UserError, match=r"^vectorization=async: no process for environment 1 \(Resource temporarily "):
        Envs(walk(), 3, 0, apart=True)


def test_an_environment_that_cannot_be_made_there_says_so_as_ever() -> None:
    with pytest.raises(UserError, match=r"^env=Walk-v0 cannot be made: TypeError: .*unheard"):
        Envs(walk(unheard=1), 2, 0, apart=True)
