"""A sweep survives its jobs, its own death, and being told to stop; only what is missing is done again."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mishaps import CURED
from sweeping import TINY, Ended, checkpoints, only, same_as_alone

from rl_runner.config.schema import Config
from rl_runner.errors import UserError
from rl_runner.rundir import RESULT, read_json
from rl_runner.sweep.board import duration
from rl_runner.sweep.conduct import owned
from rl_runner.sweep.jobs import grid_identity, job_hash, jobs_in, sweep_directory
from rl_runner.sweep.plan import _together

Command = Callable[..., Ended]


def test_four_of_eight_jobs_fail_and_only_those_run_again(
    rl_runner: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("-m", *TINY, "+env.kwargs.what=calm,raise,exit,kill,not_a_number,a,b,c")
    first = rl_runner(*words)
    assert first.code == 1
    sweep = only(tmp_path, "outputs/sweeps/*")
    failures = "\n".join(first.err)
    assert "4 of 8 jobs failed:" in failures
    for what, complaint in [
        ("raise", "ZeroDivisionError: the pole fell through the floor"),
        ("exit", "SystemExit: 0"),
        ("kill", r"killed by SIGKILL \(out of memory\?\): .+"),
        ("not_a_number", "reward .*nan"),
    ]:
        assert re.search(rf"env.kwargs.what={what}: .*{complaint}", failures), failures
    finished = {path.parent: path.stat().st_mtime_ns for path in sweep.glob(f"*/{RESULT}")}
    assert {path.name.rsplit(",", 1)[0] for path in finished} == {f"env.kwargs.what={w}" for w in ("calm", *"abc")}
    assert (sweep / "report/index.html").is_file()

    monkeypatch.setenv(CURED, "1")
    again = rl_runner(*words)
    assert again.code == 0
    started = {line.split(":")[0] for line in again.out if line.endswith(": running")}
    assert started == {f"env.kwargs.what={w}" for w in ("raise", "exit", "kill", "not_a_number")}
    assert len(list(sweep.glob(f"*/{RESULT}"))) == 8
    assert all((path / RESULT).stat().st_mtime_ns == changed for path, changed in finished.items())


def test_killed_sweep_goes_on_to_the_same_files(rl_runner: Command, tmp_path: Path) -> None:
    words = ("-m", *TINY, "total_steps=3000", "seed=1,2,3", "hydra.sweep.dir=sweep", "hydra.launcher.n_jobs=2")
    sweep = tmp_path / "sweep"
    process = subprocess.Popen([sys.executable, "-m", "rl_runner", *words], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while min(checkpoints(sweep, seed) for seed in (1, 2)) < 5:
        time.sleep(0.02)
        assert process.poll() is None
    jobs = [read_json(only(sweep, f"seed={s},*") / "status.json")["pid"] for s in (1, 2)]
    process.kill()
    os.kill(jobs[0], signal.SIGKILL)  # the other one learns of it, saves and ends by itself
    process.wait()
    assert not list(sweep.glob(f"*/{RESULT}"))

    assert rl_runner("resume", str(sweep), "plugins=[mishaps]").code == 0
    for seed in (1, 2, 3):
        same_as_alone(only(sweep, f"seed={seed},*"), tmp_path / f"alone_{seed}")


def test_interrupt_lets_every_job_save(rl_runner: Command, tmp_path: Path) -> None:
    words = ("-m", *TINY, "total_steps=100_000", "seed=1,2,3", "hydra.sweep.dir=sweep", "hydra.launcher.n_jobs=2")
    sweep = tmp_path / "sweep"
    command = [sys.executable, "-m", "rl_runner", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, **quiet)
    while min(checkpoints(sweep, seed) for seed in (1, 2)) < 1:
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.endswith(f"all is saved; to go on: rl-runner {shlex.join(words)}\n")
    states = [read_json(only(sweep, f"seed={s},*") / "status.json").get("state") for s in (1, 2, 3)]
    assert states == ["interrupted", "interrupted", None]


def test_dry_run_tells_and_starts_nothing(rl_runner: Command, tmp_path: Path) -> None:
    fixed = ("env=CartPole-v1", "tuned=none", "total_steps=50_000", "replay.capacity=10_000", "dry_run=true")
    ended = rl_runner("-m", "algo=dqn,ddqn", "seed=0,1", *fixed)
    assert ended.code == 0
    rows = [line.split() for line in ended.out]
    # 1 000 random steps, then an update each; two observations of 16 bytes, action 8, reward 4, two flags.
    assert [row[:7] for row in rows[1:5]] == [
        [f"algo={algo},", f"seed={seed}", "new", "50,000", "49,000", "0.5", "MB"]
        for algo in ("dqn", "ddqn")
        for seed in (0, 1)
    ]
    assert "time: unknown, no similar run has finished under outputs/" in ended.out[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_takes_no_less_than_its_longest_job() -> None:
    assert _together([60.0, 120.0], at_once=1) == "3 min"
    assert _together([60.0, 120.0], at_once=2) == "2 min"
    assert _together([60.0] * 6, at_once=2) == "3 min"
    assert _together([60.0, None], at_once=2).startswith("unknown")


def test_sweep_is_found_again_by_its_jobs_alone(configure: Callable[..., Config], tmp_path: Path) -> None:
    dqn, ddqn = (configure(f"algo={algo}", "env=CartPole-v1") for algo in ("dqn", "ddqn"))
    template = f"{tmp_path}/{{jobs}}"
    place = sweep_directory(template, grid_identity([dqn, ddqn]), fresh=False)
    assert sweep_directory(template, grid_identity([ddqn, dqn]), fresh=False) == place
    assert sweep_directory(template, grid_identity([dqn]), fresh=False) != place
    seeded = configure("algo=dqn", "env=CartPole-v1", "seed=1")
    assert job_hash(seeded) != job_hash(dqn) == job_hash(configure("algo=dqn", "env=CartPole-v1", "checkpoint_every=7"))

    (first,) = jobs_in(place, [["algo=dqn"]], [dqn])
    first.save()
    again = jobs_in(place, [["algo=ddqn", "seed=0"], ["algo=dqn", "seed=0"]], [ddqn, dqn])
    assert again[1].directory == first.directory
    assert again[0].directory.name == f"algo=ddqn,{job_hash(ddqn)}"
    assert [job.name for job in jobs_in(place, [["seed=0"], ["seed=0"]], [dqn, dqn])] == ["job"]

    fresh = sweep_directory(template, grid_identity([dqn, ddqn]), fresh=True)
    assert fresh.name == f"{place.name}_2"
    (fresh / "job").mkdir(parents=True)
    assert sweep_directory(template, grid_identity([dqn, ddqn]), fresh=False) == fresh
    assert sweep_directory(template, grid_identity([dqn, ddqn]), fresh=True).name == f"{place.name}_3"


def test_second_sweep_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    held = "import sys, time; from pathlib import Path; from rl_runner.sweep.conduct import owned\n"
    held += "with owned(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", held, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"is in use by process {holder.pid} "), owned(tmp_path):
            pass
        holder.kill()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=0: must be greater than 0"),
        ("hydra.launcher.njobs=1", "hydra.launcher.njobs: no such key; did you mean hydra.launcher.n_jobs?"),
        ("hydra/launcher=basic", "hydra/launcher=basic: a sweep runs on hydra/launcher=local, slurm or ray"),
        ("hydra/launcher=slrum", "hydra/launcher=slrum: no such hydra/launcher; did you mean slurm?"),
    ],
)
def test_wrong_launcher_is_one_line(rl_runner: Command, tmp_path: Path, word: str, expected: str) -> None:
    ended = rl_runner("-m", "algo=dqn", "env=CartPole-v1", "seed=0,1", word)
    assert (ended.code, ended.err) == (2, [expected])
    assert list(tmp_path.iterdir()) == []


def test_installing_the_core_pulls_no_engine() -> None:
    from importlib.metadata import requires

    needed = [line for line in requires("rl-runner") or [] if "extra ==" not in line]
    assert not [line for line in needed if re.match("optuna|ray|submitit|hydra-", line) and "hydra-core" not in line]


def test_durations_in_words() -> None:
    assert [duration(seconds) for seconds in (3.2, 99, 130, 7200)] == ["3 s", "99 s", "2 min", "2.0 h"]


def test_command_is_kept_for_people(rl_runner: Command, tmp_path: Path) -> None:
    directory = tmp_path / "sweep"
    directory.mkdir()
    (directory / "sweep.json").write_text(json.dumps({"command": ["-m", "algo=dqn,ddqn"], "resumable": False}))
    ended = rl_runner("resume", str(directory))
    assert ended.code == 2
    assert ended.err == [f"to go on with {directory}, repeat its command: rl-runner -m algo=dqn,ddqn"]
