"""What stops a run, and how it goes on: signals, extensions, full disks, broken environments, second processes."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from killing import assert_same, kill, start

from rl_runner import persistence, resume, saved_policy
from rl_runner.__main__ import main
from rl_runner.config.schema import Config, load_config, save_config
from rl_runner.errors import Interrupted, RunFailed, UserError
from rl_runner.evaluate import Evaluator
from rl_runner.logger import Logger
from rl_runner.persistence import CHECKPOINT, CONFIG, METRICS, RESULT, STATUS, command_line_of, read_json
from rl_runner.persistence.checkpoint import newest, seal
from rl_runner.persistence.session import Saver, session_in
from rl_runner.run import run
from rl_runner.train import train

TINY = (
    "tuned=none", "learning_starts=40", "total_steps=240", "checkpoint_every=50", "log_every=20", "eval_every=60",
    "eval_episodes=2", "final_eval_episodes=3", "network.hidden=[8]", "algo.batch_size=8", "replay.capacity=100",
)  # fmt: skip
DQN = ("algo=dqn", "env=CartPole-v1", "lr_schedule=linear", "algo.epsilon_mu=1.5")
SAC = ("algo=sac", "env=Pendulum-v1", "algo.gamma=0.9", "update_every=4")

Configure = Callable[..., Config]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets something happen after a given step of the runs that follow."""
    after_step = Saver.after_step
    actions: dict[int, Callable[[], Any]] = {}

    def patched(saver: Saver) -> None:
        actions.get(saver._run.step, lambda: None)()
        after_step(saver)

    monkeypatch.setattr(Saver, "after_step", patched)
    return actions.__setitem__


def state(directory: Path) -> str:
    return read_json(directory / STATUS)["state"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_stopped_by_a_signal_and_resumed_is_the_undisturbed_run(
    signum: signal.Signals, configure: Configure, at_step: Callable[..., None], tmp_path: Path
) -> None:
    config = configure(*TINY, *DQN)
    run(config, tmp_path / "undisturbed")
    handler = signal.getsignal(signum)
    at_step(117, lambda: os.kill(os.getpid(), signum))
    with pytest.raises(Interrupted) as interrupted:
        run(config, tmp_path / "stopped")
    assert interrupted.value.signum == signum
    assert signal.getsignal(signum) is handler
    assert state(tmp_path / "stopped") == "interrupted"
    saved = newest(tmp_path / "stopped" / CHECKPOINT)
    assert saved is not None
    assert saved.step == 117
    at_step(117, lambda: None)
    resume.main([str(tmp_path / "stopped")])
    assert state(tmp_path / "stopped") == "finished"
    assert_same(tmp_path / "undisturbed", tmp_path / "stopped")


def test_a_second_signal_ends_the_process_at_once(configure: Configure, tmp_path: Path) -> None:
    asleep = tmp_path / "asleep"
    words = ("env=CartPole-v1", "env.id=Sleepy-v0", f"+env.kwargs.note={asleep}", "eval_every=0", "total_steps=10_000")
    process = start(configure(*TINY, "algo=dqn", *words), tmp_path / "run")
    _wait(asleep.exists, process.is_alive)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(timeout=0.5)
    assert process.is_alive(), "the first one only asks"
    kill(process, signal.SIGTERM)
    assert process.exitcode == -signal.SIGTERM


def test_exit_codes_and_the_same_command_again(tmp_path: Path) -> None:
    assert "continues at step" not in _stopped(tmp_path / "run", signal.SIGTERM)
    assert "continues at step" in _stopped(tmp_path / "run", signal.SIGUSR1)


def _stopped(directory: Path, signum: signal.Signals) -> str:
    """What the command line says of a long run that a signal stops."""
    words = ["algo=q_learning", "env=FrozenLake-v1", "total_steps=10_000_000", f"hydra.run.dir={directory}"]
    command = [sys.executable, "-m", "rl_runner", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    _wait(lambda: read_json(directory / STATUS).get("pid") == process.pid, lambda: process.poll() is None)
    process.send_signal(signum)
    output, _ = process.communicate()
    assert process.returncode == 128 + signum, output
    assert f"interrupted by signal {signum.value}, all is saved; to go on: rl-runner resume {directory}\n" in output
    assert "Traceback" not in output
    return output


def _wait(reached: Callable[[], bool], alive: Callable[[], bool]) -> None:
    while not reached():
        assert alive(), "it ended too early"
        time.sleep(0.01)


def test_the_same_command_goes_on_and_then_says_that_it_is_finished(
    configure: Configure, at_step: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(*TINY, *DQN)
    at_step(130, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(config, tmp_path)
    result = run(config, tmp_path)
    assert "continues at step 130 of 240" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    assert run(config, tmp_path) == result
    assert "is finished: 240 steps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"} == before


@pytest.mark.parametrize("every", [(20, 60), (70, 60), (20, 0), (1000, 1000)], ids=str)  # rows, evaluations
def test_an_extended_run_without_schedules_is_the_longer_run(
    every: tuple[int, int], configure: Configure, tmp_path: Path
) -> None:
    words = (*TINY, *SAC, f"log_every={every[0]}", f"eval_every={every[1]}")
    run(configure(*words), tmp_path / "extended")
    resume.main([str(tmp_path / "extended"), "total_steps=330"])
    run(configure(*words, "total_steps=330"), tmp_path / "longer")
    assert_same(tmp_path / "extended", tmp_path / "longer")


def test_learning_rates_fall_from_where_they_began_after_a_stop(
    configure: Configure, at_step: Callable[..., None], tmp_path: Path
) -> None:
    """Also those of an optimizer that loads the fallen rate together with its state."""
    config = configure(*TINY, *DQN, "optimizer._target_=torch.optim.NAdam")
    whole = run(config, tmp_path / "whole")
    at_step(130, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(config, tmp_path / "stopped")
    assert run(config, tmp_path / "stopped")["params_sha256"] == whole["params_sha256"]


def test_extending_stretches_schedules_and_says_so(
    configure: Configure, at_step: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(configure(*TINY, *DQN, "algo.epsilon_fraction=1"), tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    resume.main([str(tmp_path / "one"), "total_steps=480"])
    said = capsys.readouterr().out
    assert "total_steps 240 becomes 480: every schedule of the run is stretched" in said
    assert "charts/epsilon at step 240 was 0.05, is 0.525" in said
    assert "charts/learning_rate at step 240 was 0, is 0.0005" in said
    at_step(333, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        resume.main([str(tmp_path / "other"), "total_steps=480"])
    resume.main([str(tmp_path / "other")])
    assert_same(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("algo.gamma=0.5", "algo.gamma is 0.99 there, 0.5 here"),
        ("seed=3", "seed is 0 there, 3 here"),
        ("env.max_episode_steps=9", "env.max_episode_steps is None there, 9 here"),
        ("total_steps=100", "has already made 240 steps"),
        ("algo.gama=0.5", "did you mean"),
    ],
)
def test_overrides_that_contradict_what_was_learned_are_refused(
    override: str, complaint: str, finished_run: Path
) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=complaint) as error:
        resume.main([str(finished_run), override])
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture
def finished_run(configure: Configure, tmp_path: Path) -> Path:
    run(configure(*TINY, *DQN), tmp_path / "finished")
    return tmp_path / "finished"


def test_full_disk_does_not_stop_training(
    configure: Configure, at_step: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files may not grow beyond 3 000 bytes for a while, less than metrics.jsonl has by then and a checkpoint needs."""
    config = configure(*TINY, *DQN, "checkpoint_every=20")
    run(config, tmp_path / "undisturbed")
    capsys.readouterr()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints: list[list[str]] = []

    def look() -> None:
        checkpoints.append(sorted(path.name for path in (tmp_path / "full" / CHECKPOINT).iterdir()))

    def fill_up() -> None:
        wait_for(tmp_path / "full" / CHECKPOINT / "000005.json")  # of step 100, which a thread brings to the disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))

    at_step(110, fill_up)
    at_step(195, lambda: (look(), resource.setrlimit(resource.RLIMIT_FSIZE, limit)))
    try:
        run(config, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = capsys.readouterr().err
    assert said.count("checkpoint at step") == 1
    assert "checkpoint at step 120 failed (File too large), the last one is of step 100: training goes on" in said
    assert "checkpoints land again: step 200" in said
    assert checkpoints == [["000004.json", "000004.pt", "000005.json", "000005.pt", "replay"]]
    assert_same(tmp_path / "undisturbed", tmp_path / "full")


class Broken(gym.Env):
    """A random walk that breaks in its 150th step, in the way it is told."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,))
    steps = 0

    def __init__(self, fault: str):
        self.fault = fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fault == "reset" and Broken.steps >= 150:
            raise ConnectionError("the simulator\nis gone")
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Broken.steps += 1
        self.t += 1
        now = Broken.steps >= 150
        if now and self.fault == "step":
            raise ZeroDivisionError("division by zero")
        obs = self.np_random.normal(size=2).astype(np.float32)
        if now and self.fault == "obs":
            obs[1] = np.inf
        reward = float("nan") if now and self.fault == "reward" else 0.0
        return obs, reward, self.t == 10, False, {}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    gym.register("Broken-v0", Broken)
    monkeypatch.setattr("rl_runner.run.probe_continuity", lambda env: (False, "not probed"))
    Broken.steps = 0
    yield
    del gym.registry["Broken-v0"]


@pytest.mark.parametrize(
    ("fault", "culprit"),
    [
        ("reward", "Broken-v0 gave the reward nan"),
        ("obs", "infinity in an observation"),
        ("step", "ZeroDivisionError: division by zero in step"),
        ("reset", "ConnectionError: the simulator is gone in reset"),
    ],
)
def test_broken_environment_is_named_and_the_checkpoint_intact(
    fault: str, culprit: str, broken: None, configure: Configure, tmp_path: Path
) -> None:
    words = ("env=Pendulum-v1", "env.id=Broken-v0", f"+env.kwargs.fault={fault}", "eval_every=0")
    _check_failure(configure(*TINY, "algo=sac", *words), tmp_path, culprit, step=100)


@pytest.mark.parametrize("log_every", [20, 1000], ids=["found by a row", "found by the next checkpoint"])
def test_exploding_loss_is_named_and_the_checkpoint_intact(
    log_every: int, configure: Configure, tmp_path: Path
) -> None:
    words = ("eval_every=0", "learning_starts=110", "optimizer.lr=1e30", f"log_every={log_every}")
    config = configure(*TINY, "algo=sac", "env=Pendulum-v1", *words)
    _check_failure(config, tmp_path, "became|is not finite", step=100)


def _check_failure(config: Config, directory: Path, culprit: str, step: int) -> None:
    with pytest.raises(RunFailed, match=culprit) as failure:
        run(config, directory)
    status = read_json(directory / STATUS)
    assert status["state"] == "failed"
    assert status["error"] == str(failure.value)
    assert "\n" not in status["error"]
    saved = newest(directory / CHECKPOINT)
    assert saved is not None
    assert saved.step == step


def test_a_second_process_is_refused_until_the_first_is_gone(configure: Configure, tmp_path: Path) -> None:
    config = configure(*TINY, *DQN, "total_steps=1_000_000")
    process = start(config, tmp_path / "run")
    _wait(lambda: read_json(tmp_path / "run" / STATUS).get("state") == "running", process.is_alive)
    with pytest.raises(UserError, match=rf"is in use by process {process.pid} on"):
        run(config, tmp_path / "run")
    assert state(tmp_path / "run") == "running"
    kill(process)
    with session_in(tmp_path / "run"):
        pass


def test_a_malicious_config_runs_nothing(finished_run: Path) -> None:
    config = (finished_run / CONFIG).read_text()
    canary = finished_run / "canary"
    for target in ("os.system", "torch.nn.parallel.distributed.os.system"):
        bomb = config.replace("_target_: rl_runner.networks.MLP", f"_target_: {target}\n  command: touch {canary}")
        assert bomb != config
        (finished_run / CONFIG).write_text(bomb)
        for command in (resume.main, saved_policy.evaluate):
            with pytest.raises(UserError, match="may be named"):
                command([str(finished_run)])
    assert not canary.exists()


@pytest.mark.parametrize("word", ["a=b\nalgo: 1", "a=b\r\n", "a=ü ±", "a=\udcff", "a=\u2028'"])
def test_the_command_line_stays_one_comment(word: str, configure: Configure, tmp_path: Path) -> None:
    config = configure(*TINY, *DQN)
    config._command_line[:] = ["first", word, "last"]
    save_config(config, tmp_path / CONFIG)
    assert load_config(tmp_path / CONFIG).model_dump() == config.model_dump()
    saved = command_line_of((tmp_path / CONFIG).read_text("utf-8"))
    assert (saved[0], saved[-1], len(saved)) == ("first", "last", 3)


def test_a_changed_machine_is_named(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (finished_run / CHECKPOINT).glob("*.json"):
        manifest = json.loads(path.read_bytes())
        del manifest["crc32"]
        manifest["origin"]["machine"] |= {"torch": "1.13", "threads": 8}
        path.write_bytes(seal(manifest))
    resume.main([str(finished_run), "total_steps=260"])
    said = capsys.readouterr().err
    assert "not exact: torch was 1.13, is" in said
    assert "not exact: threads was 8, is 1" in said


def test_a_run_from_before_a_key_existed_goes_on(finished_run: Path) -> None:
    config = finished_run / CONFIG
    config.write_text("".join(line for line in config.open() if not line.startswith("lr_schedule")))
    for path in (finished_run / CHECKPOINT).glob("*.json"):
        manifest = json.loads(path.read_bytes())
        del manifest["crc32"], manifest["origin"]["config"]["lr_schedule"]
        path.write_bytes(seal(manifest))
    resume.main([str(finished_run), "total_steps=260"])
    assert read_json(finished_run / RESULT)["total_steps"] == 260


def test_a_log_that_lost_its_end_is_named(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = finished_run / METRICS
    os.truncate(metrics, metrics.stat().st_size // 2)
    resume.main([str(finished_run), "total_steps=260"])
    assert "has lost its end" in capsys.readouterr().err
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_finished_run_whose_checkpoint_is_gone_is_not_begun_anew(configure: Configure, finished_run: Path) -> None:
    shutil.rmtree(finished_run / CHECKPOINT)
    with pytest.raises(UserError, match="without its checkpoint"):
        run(configure(*TINY, *DQN), finished_run)


@pytest.mark.parametrize("command", [resume.main, saved_policy.evaluate])
def test_a_directory_without_a_run_is_refused(command: Callable[[list[str]], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        command([str(tmp_path)])


def test_how_a_run_is_evaluated_may_change_where_it_stopped(finished_run: Path) -> None:
    """What it has learned does not depend on it."""
    for word in ("eval_every=7", "eval_episodes=1", "final_eval_episodes=1"):
        resume.main([str(finished_run), word])


def test_saved_policy_is_the_one_that_was_trained(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained, again = read_json(finished_run / RESULT), saved_policy.evaluate([str(finished_run)])
    assert {key: trained[key] for key in again} == again
    assert "CartPole-v1, policy of step 240, 3 episodes" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["report", "export"])
def test_a_place_that_cannot_be_written_is_one_line(
    finished_run: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    (blocked := finished_run / "a_file").touch()
    assert main([command, str(finished_run), "--out", str(blocked / "out" / "policy.pt2")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(blocked) in line
    assert "Not a directory" in line


def test_plugins_may_be_named_after_an_option(finished_run: Path) -> None:
    assert len(saved_policy.evaluate([str(finished_run), "--episodes", "2", "plugins=[]"])["episode_returns"]) == 2


def test_video_shows_the_first_evaluated_episode(finished_run: Path) -> None:
    moviepy = pytest.importorskip("moviepy")
    pytest.importorskip("pygame")
    metrics = saved_policy.evaluate([str(finished_run), "--episodes", "1", "--video"])
    (video,) = (finished_run / "videos").iterdir()
    with moviepy.VideoFileClip(str(video)) as clip:
        assert clip.n_frames == 1 + metrics["eval/length_mean"]


def test_what_cannot_be_filmed_is_said_before_anything_is_evaluated(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "moviepy", None)
    with pytest.raises(UserError, match="recording needs moviepy"):
        saved_policy.evaluate([str(finished_run), "--video"])
    assert capsys.readouterr().out == ""
    assert not (finished_run / "videos").exists()


def test_an_environment_without_a_picture_cannot_be_filmed(configure: Configure, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    run(configure(*TINY, "algo=dqn", "env=Random-v0", "eval_every=0"), tmp_path)
    with pytest.raises(UserError, match=r"Random-v0 cannot be filmed: .*render_mode"):
        saved_policy.evaluate([str(tmp_path), "--episodes", "1", "--video"])
    assert not (tmp_path / "videos").exists()


class Random(gym.Env):
    """Draws from the process-wide stream, as no environment should: no run in it can be continued exactly."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.random.normal(size=2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.random.normal(size=2).astype(np.float32), 1.0, False, self.t == 50, {}


gym.register("Random-v0", Random)


def test_what_cannot_be_exact_is_said_and_no_transition_spans_the_break(
    configure: Configure, at_step: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = configure(*TINY, "algo=dqn", "env=CartPole-v1", "env.id=Random-v0", "replay.n_step=3")
    at_step(125, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(config, tmp_path)
    assert "not deterministic: a run resumes at episode boundaries only" in capsys.readouterr().out
    truncated: list[bool] = []
    at_step(125, lambda: None)
    monkeypatch.setattr("rl_runner.run.train", _spy(truncated))
    run(config, tmp_path)
    assert truncated == [True]
    assert "not exact: 25 steps into episode 2" in capsys.readouterr().err
    del gym.registry["Random-v0"]


def _spy(truncated: list[bool]) -> Callable[..., None]:
    from rl_runner.train import train

    def spy(parts: Any, *rest: Any) -> None:
        newest_row = parts.replay.ring.at(parts.replay.ring.head - 1)
        truncated.append(bool(parts.replay.ring.columns["truncated"][newest_row]))
        train(parts, *rest)

    return spy


def limited(size: int) -> Callable[[], None]:
    """Sets the size beyond which no file may grow, as on a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def disk() -> Iterator[None]:
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    limited(soft)()


@pytest.mark.parametrize(
    ("full_from", "on_disk"), [(110, "the last one is of step 100"), (1, "there is none yet")], ids=["100", "none"]
)
def test_a_signal_on_a_full_disk_names_the_step_that_is_on_it(
    full_from: int, on_disk: str, disk: None, configure: Configure, at_step: Callable[..., None], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = configure(*TINY, *DQN)
    undisturbed = run(config, tmp_path / "undisturbed")
    capsys.readouterr()

    def fill_up() -> None:
        if full_from > 100:
            wait_for(tmp_path / "full" / CHECKPOINT / "000002.json")
        limited(3000)()

    at_step(full_from, fill_up)
    at_step(130, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted) as interrupted:
        run(config, tmp_path / "full")
    limited(-1)()
    at_step(full_from, lambda: None)
    at_step(130, lambda: None)
    said = str(interrupted.value)
    assert f"checkpoint at step 130 failed (File too large), {on_disk}; to go on: rl-runner resume" in said
    assert "all is saved" not in said
    assert said.count("\n") == 0
    assert "step 130" not in capsys.readouterr().err
    status = read_json(tmp_path / "full" / STATUS)
    assert (status["state"], status["step"]) == ("interrupted", 130)
    assert on_disk in status["error"]
    assert run(config, tmp_path / "full")["params_sha256"] == undisturbed["params_sha256"]
    assert "error" not in read_json(tmp_path / "full" / STATUS)


@pytest.mark.parametrize("broken", ["checkpoint", METRICS, RESULT, STATUS])
def test_an_end_that_cannot_be_saved_is_a_failure_that_keeps_its_result(
    broken: str, disk: None, configure: Configure, at_step: Callable[..., None], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Whatever of its last files does not fit on the disk; the same command then writes what is missing."""
    config = configure(*TINY, *DQN)
    undisturbed = run(config, tmp_path / "undisturbed")
    capsys.readouterr()
    directory, replace, drain = tmp_path / "full", persistence.replace, Logger._drain

    def full(path: Path, content: bytes, sync: bool = True) -> None:
        ended = b'"finished"' in content or path.name != STATUS
        if parts and parts[0].step == 240 and broken in (path.name, path.parent.name) and ended:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        replace(path, content, sync)

    def full_log(logger: Logger) -> None:
        if broken == METRICS and b'"step": 240' in logger._waiting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        drain(logger)

    parts: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr(persistence, "replace", full)
        patch.setattr(Logger, "_drain", full_log)
        patch.setattr("rl_runner.run.train", lambda run, *rest: (parts.append(run), train(run, *rest)))
        with pytest.raises(RunFailed, match=r"trained to its end, but .*No space left on device.*resume") as failure:
            run(config, directory)
    assert str(failure.value).count("\n") == 0
    assert broken in str(failure.value)
    if broken == "checkpoint":
        assert "the last one is of step 200" in str(failure.value)
    status = read_json(directory / STATUS)
    assert (status["state"], status["error"], status["step"]) == ("failed", str(failure.value), 240)
    assert "final evaluation:" in capsys.readouterr().out
    if broken != RESULT:
        assert read_json(directory / RESULT)["params_sha256"] == undisturbed["params_sha256"]
    run(config, directory)
    assert state(directory) == "finished"
    assert_same(tmp_path / "undisturbed", directory)


def test_a_hangup_saves_and_a_second_one_changes_nothing(
    configure: Configure, at_step: Callable[..., None], tmp_path: Path
) -> None:
    """A terminal that closes may send two."""
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        at_step(117, lambda: [os.kill(os.getpid(), signal.SIGHUP) for _ in range(2)])
        with pytest.raises(Interrupted) as interrupted:
            run(configure(*TINY, *DQN), tmp_path)
        assert interrupted.value.signum == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        assert (read_json(tmp_path / STATUS)["state"], read_json(tmp_path / STATUS)["step"]) == ("interrupted", 117)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        at_step(117, lambda: None)
        at_step(200, lambda: os.kill(os.getpid(), signal.SIGHUP))
        assert run(configure(*TINY, *DQN), tmp_path)["total_steps"] == 240
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_the_final_evaluation_is_not_taken_for_an_environments_mistake(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, evaluate = configure(*TINY, *DQN, "eval_every=0"), Evaluator.__call__
    whole = run(config, tmp_path / "whole")

    def evaluated(*args: Any) -> Any:
        patch.setattr(CartPoleEnv, "step", lambda env, action: os.kill(os.getpid(), signal.SIGTERM))
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", evaluated)
        with pytest.raises(Interrupted, match="all is saved"):
            run(config, tmp_path / "run")
    assert state(tmp_path / "run") == "interrupted"
    assert run(config, tmp_path / "run")["params_sha256"] == whole["params_sha256"]


@pytest.mark.parametrize(
    ("total", "log_every", "eval_every"), [(1, 1000, 0), (7, 1000, 1000), (60, 20, 20), (61, 20, 20), (61, 60, 0)]
)
def test_a_run_of_any_length_has_one_row_of_its_last_step(
    total: int, log_every: int, eval_every: int, configure: Configure, tmp_path: Path
) -> None:
    words = (f"total_steps={total}", f"log_every={log_every}", f"eval_every={eval_every}")
    result = run(configure(*TINY, *DQN, *words), tmp_path)
    found = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert [row["step"] for row in found] == sorted({*range(log_every, total, log_every), total})
    assert {"charts/SPS", "charts/epsilon", "eval/return_mean"} <= found[-1].keys()
    assert found[-1]["eval/return_mean"] == result["eval/return_mean"]
    assert read_json(tmp_path / STATUS)["step"] == total


@pytest.mark.parametrize("stop", [signal.SIGTERM, KeyboardInterrupt])
def test_speed_is_counted_over_a_stop(
    stop: Any, configure: Configure, at_step: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps take 1 to 7 seconds of a clock that nothing else moves; a kill takes back what no checkpoint has seen."""
    now = 0.0

    def tick(step: int, stopped_at: int | None) -> None:
        nonlocal now
        now += 1 + step % 7
        if step == stopped_at and stop is KeyboardInterrupt:
            raise stop
        if step == stopped_at:
            os.kill(os.getpid(), stop)

    def clocked(directory: Path, stopped_at: int | None = None) -> tuple[float, list[float]]:
        for step in range(241):
            at_step(step, partial(tick, step, stopped_at))
        result = run(configure(*TINY, *DQN), directory)
        found = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
        return result["sps"], [row["charts/SPS"] for row in found]

    monkeypatch.setattr("rl_runner.train.time", SimpleNamespace(perf_counter=lambda: now))
    undisturbed = clocked(tmp_path / "undisturbed")
    assert undisturbed[0] == 240 / sum(1 + step % 7 for step in range(1, 241))
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        clocked(tmp_path / "stopped", stopped_at=117)
    assert read_json(tmp_path / "stopped" / STATUS)["step"] == 117
    assert clocked(tmp_path / "stopped") == undisturbed
