"""Bad input gets one line per mistake that says what to do, exit code 2, no traceback, and nothing is written."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from rl_runner.__main__ import main

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
NO_ATARI = pytest.mark.skipif(importlib.util.find_spec("ale_py") is not None, reason="the extra is installed")


class Ended(NamedTuple):
    code: int
    lines: list[str]
    files: list[str]


@pytest.fixture
def rl_runner(tmp_path, monkeypatch, capsys):
    """Runs a command line in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rl-runner"])

    def run(*words: str) -> Ended:
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
        return Ended(code, printed.err.splitlines(), files)

    return run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(
            "accelerate=cudagraph",
            ["accelerate=cudagraph needs a CUDA device; use accelerate=compile or auto"],
            marks=NO_CUDA,
        ),
        ("--foo", ["no such option: --foo; see rl-runner --help"]),
        (
            "eval . --episodes 0",
            ["rl-runner eval: argument --episodes: 0 is no number of 1 or more; see rl-runner eval --help"],
        ),
        ("resume --foo .", ["rl-runner resume: unrecognized arguments: --foo; see rl-runner resume --help"]),
        ("algo=sca", ["algo=sca: no such algo; did you mean sac?"]),
        ("optimizer=adm", ["optimizer=adm: no such optimizer; did you mean adam?"]),
        ("env=Pendulm-v1", ["env=Pendulm-v1: no such environment; did you mean Pendulum-v1?"]),
        ("env=Pendulum", ["env=Pendulum: no such environment; did you mean Pendulum-v1?"]),
        ("env=Taxi-v3", ["env=Taxi-v3: no such environment; did you mean Taxi-v4?"]),
        (
            "algo=dqn env=Pendulum-v1",
            ["DQN needs discrete actions, Pendulum-v1 has continuous ones: use algo=sac, td3 or ddpg"],
        ),
        (
            "algo=sac env=CartPole-v1",
            ["SAC needs continuous actions, CartPole-v1 has discrete ones: use algo=dqn or ddqn"],
        ),
        (
            "algo=q_learning env=CartPole-v1",
            ["QLearning needs numbered states, CartPole-v1 observes arrays: use algo=dqn or ddqn"],
        ),
        (
            "algo=q_learning env=FrozenLake-v1 replay=uniform",
            ["QLearning does not learn from UniformReplay: use replay=last"],
        ),
        ("network=dueling algo=sac", ["network=dueling is for discrete actions (algo=dqn or ddqn): use network=mlp"]),
        ("algo.gama=.9", ["algo.gama: no such key; did you mean algo.gamma?"]),
        ("lr=1e-3", ["lr: no such key; did you mean optimizer.lr?"]),
        ("+sed=1", ["sed: no such key; did you mean seed?"]),
        ("+algo.gama=.9", ["algo.gama: no such key; did you mean algo.gamma?"]),
        ("algo.tau=2", ["algo.tau=2: must be less than or equal to 1"]),
        ("~algo.tau", ["algo.tau: missing; give it a value"]),
        ("eval", ["rl-runner eval: the following arguments are required: DIR; see rl-runner eval --help"]),
        ("--config-dir nowhere algo=my_dqn", ["--config-dir nowhere: no such directory"]),
        (
            "env.id=InvertedPendulum-v5",
            [
                "env.id=InvertedPendulum-v5: tuned/sac_Pendulum-v1 goes with env=Pendulum-v1; "
                "write env=InvertedPendulum-v5, or add tuned=none"
            ],
        ),
        (
            "algo=dqn env.id=CartPole-v1",
            [
                "env.id=CartPole-v1: tuned/dqn_CartPole-v1 goes with env=CartPole-v1; "
                "write env=CartPole-v1, or add tuned=none"
            ],
        ),
        ("~env.id", ["env.id: missing; give it a value"]),
        (
            "env=Line-v0",
            ["env=Line-v0: no such environment; if a package of yours registers it, name that in plugins=[...]"],
        ),
        (
            "-m optimizer.lr=interval(1e-5,1e-2)",
            ["optimizer.lr=interval(1e-5,1e-2): a grid needs values; to search an interval add hydra/sweeper=optuna"],
        ),
        (
            "-m optimizer.lr=interval(1e-5,1e-2) sed=1",
            [
                "optimizer.lr=interval(1e-5,1e-2): a grid needs values; to search an interval add hydra/sweeper=optuna",
                "sed: no such key; did you mean seed?",
            ],
        ),
        (
            "-m optimizer.lr=interval(1e-5,1e-2) total_steps=-5",
            [
                "optimizer.lr=interval(1e-5,1e-2): a grid needs values; to search an interval add hydra/sweeper=optuna",
                "total_steps=-5: must be greater than 0",
            ],
        ),
        (
            "-m hydra/sweeper=optuna optimizer.lr=interval(1e-5,1e-2) sed=1",
            ["sed: no such key; did you mean seed?"],
        ),
        (
            "optimizer.lr=interval(1e-5,1e-2)",
            ["optimizer.lr=interval(1e-5,1e-2): an interval: add -m hydra/sweeper=optuna to search it"],
        ),
        ("algo.batch_size=0", ["algo.batch_size=0: must be greater than 0"]),
        ("total_steps=1.5", ["total_steps=1.5: must be a valid integer, got a number with a fractional part"]),
        ("total_steps=-5", ["total_steps=-5: must be greater than 0"]),
        ("seed=abc", ["seed=abc: must be a valid integer"]),
        ("seed=true", ["seed=true: must be something else than true or false"]),
        ("optimizer.lr=nan", ["optimizer.lr=nan: must be a finite number"]),
        ("optimizer.lr=-1", ["optimizer: Invalid learning rate: -1.0"]),
        ("accelerate=fast", ["accelerate=fast: must be 'auto', 'eager', 'compile' or 'cudagraph'"]),
        ("precision=low", ["precision=low: must be 'highest', 'high' or 'medium'"]),
        ("threads=0", ["threads=0: must be 'auto' or greater than 0"]),
        ("device=gpu", ["device=gpu: must be auto, cpu, cuda or cuda:N"]),
        (
            "replay.capacity=10",
            ["replay.capacity=10 is less than algo.batch_size=256: use replay.capacity=256 or more"],
        ),
        ("network.hidden=256", ["network.hidden=256: must be a list, such as [256,256]"]),
        ("hydra/launcher=slurm", ["hydra/launcher=slurm is for sweeps: add -m"]),
        (
            "algo=dqn,ddqn env=CartPole-v1 algo.epsilon_min=0.1",
            ["algo=dqn,ddqn: several values: add -m to sweep over them"],
        ),
        (
            "algo=sca seed=-1",
            ["algo=sca: no such algo; did you mean sac?", "seed=-1: must be greater than or equal to 0"],
        ),
        ("network.hidden=[64,-1]", ["network.hidden=-1: must be greater than 0"]),
        ("tuned=sac_Pendulum", ["tuned=sac_Pendulum: no such tuned; did you mean sac_Pendulum-v1?"]),
        ("train", ["train: not understood; a setting is key=value, --help shows the commands"]),
        (
            "network.hidden=[64",
            [
                "network.hidden=[64: the value is not understood; close its brackets, or quote it: "
                r"network.hidden=\'value\'"
            ],
        ),
        ("seed=0,1", ["seed=0,1: several values: add -m to sweep over them, or write seed=[0,1] for a list"]),
        ("env.kwargs.g=3", ["env.kwargs.g: to pass a new argument to the environment write +env.kwargs.g=3"]),
        ("total_steps=${nothing}", ["total_steps: Interpolation key 'nothing' not found"]),
        (
            "algo._target_=os.system",
            ["algo._target_=os.system: only rl_runner, torch.optim, torch.nn and plugins=[...] may be named"],
        ),
        ("hydra.run.dri=x", ["hydra.run.dri: no such key; did you mean hydra.run.dir?"]),
        pytest.param("device=cuda", ["device=cuda: no CUDA device here; use device=cpu or auto"], marks=NO_CUDA),
        pytest.param(
            "env=ALE/Pong-v5",
            ["env=ALE/Pong-v5 needs ale_py, which is not installed: pip install 'rl-runner[atari]'"],
            marks=NO_ATARI,
        ),
        (
            "algo.tau=2 algo.gama=.9 env=Pendulm-v1 optimizer=adm",
            [
                "optimizer=adm: no such optimizer; did you mean adam?",
                "algo.gama: no such key; did you mean algo.gamma?",
                "algo.tau=2: must be less than or equal to 1",
                "env=Pendulm-v1: no such environment; did you mean Pendulum-v1?",
            ],
        ),
        (
            "-m algo=dqn,sac,sca env=CartPole-v1 seed=0,1",
            [
                "SAC needs continuous actions, CartPole-v1 has discrete ones: use algo=dqn or ddqn",
                "algo=sca: no such algo; did you mean sac?",
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistake_gets_its_line(rl_runner, words, expected):
    assert rl_runner(*words.split()) == Ended(2, expected, [])


def test_a_replay_that_does_not_fit_in_memory_names_a_capacity_that_would(rl_runner):
    code, lines, files = rl_runner("replay.capacity=1e12")
    assert (code, len(lines), files) == (2, 1, [])
    assert re.fullmatch(
        r"replay.capacity=1000000000000 needs .* GB are free .*: replay.capacity=\d+ would fit", lines[0]
    )


def test_unwritable_outputs(rl_runner, tmp_path):
    (tmp_path / "outputs").write_text("a file, not a directory")
    code, lines, files = rl_runner("total_steps=10")
    assert (code, len(lines), files) == (2, 1, ["outputs"])
    assert "Not a directory; choose another place with hydra.run.dir=..." in lines[0]


def test_a_whole_number_in_scientific_notation_is_one(rl_runner):
    assert rl_runner("total_steps=1e5", "dry_run=true") == Ended(0, [], [])


def test_misspelt_key_in_the_users_own_yaml(rl_runner, tmp_path):
    (tmp_path / "mine/algo").mkdir(parents=True)
    (tmp_path / "mine/algo/quick.yaml").write_text("defaults: [sac]\nbatchsize: 32\n")
    before = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    ended = rl_runner("--config-dir", str(tmp_path / "mine"), "algo=quick")
    assert ended == Ended(2, ["algo.batchsize: no such key; did you mean algo.batch_size?"], before)


def test_broken_yaml_of_the_user(rl_runner, tmp_path):
    (tmp_path / "mine/algo").mkdir(parents=True)
    (tmp_path / "mine/algo/quick.yaml").write_text("gamma: [0.9\n")
    code, lines, _ = rl_runner("--config-dir", str(tmp_path / "mine"), "algo=quick")
    assert (code, len(lines)) == (2, 1)
    assert "quick.yaml" in lines[0]


def test_package_that_cannot_be_imported(rl_runner):
    code, lines, files = rl_runner("plugins=[no_such_package]")
    assert (code, files) == (2, [])
    assert lines == [
        "plugins: importing no_such_package fails (ModuleNotFoundError: No module named 'no_such_package')"
    ]


@pytest.mark.parametrize("words", ["algo=sca", "+sed=1", "-m algo=sac env=CartPole-v1,Pendulum-v1"])
def test_as_a_process(tmp_path, words):
    ended = subprocess.run(
        [sys.executable, "-m", "rl_runner", *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_config_and_completion_import_no_torch(tmp_path):
    script = Path(sys.executable).with_name("rl-runner")
    environment = os.environ | {"COMP_LINE": "rl-runner env=Pendu", "COMP_POINT": "19", "PYTHONPROFILEIMPORTTIME": "1"}
    for words, expected in [
        (["--help"], "optimizer: adam, adamw, rmsprop, sgd"),
        (["--cfg", "job", "algo=ddqn", "env=CartPole-v1"], "double: true"),
        (["-sc", "query=bash"], "env=Pendulum-v1"),
    ]:
        ended = subprocess.run([script, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0
        assert expected in ended.stdout
        assert not [line for line in ended.stderr.splitlines() if line.endswith("| torch")]
    assert list(tmp_path.iterdir()) == []
