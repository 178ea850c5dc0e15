"""Bad input gets one line per mistake that says what to do, exit code 2, no traceback, and nothing is written."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from rl_runner.__main__ import main
from rl_runner.config.problems import ELSEWHERE, flat_keys
from rl_runner.config.schema import save_config
from rl_runner.config.targets import PARTS

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
NO_ATARI = pytest.mark.skipif(importlib.util.find_spec("ale_py") is not None, reason="the extra is installed")


UNTUNED = "; or, if tuned/sac_Pendulum-v1 sets it, tuned=none"


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
            "algo=td3 env=CartPole-v1",
            ["TD3 needs continuous actions, CartPole-v1 has discrete ones: use algo=dqn, ddqn or sac"],
        ),
        (
            "algo=crossq env=CartPole-v1 tuned=none",
            [
                "algo.policy_delay=3: is for continuous actions, CartPole-v1 has discrete ones; leave it out",
                "algo.target_update=none: is for continuous actions, CartPole-v1 has discrete ones; leave it out",
            ],
        ),
        (
            "algo=sac env=CartPole-v1 tuned=none algo.log_std_min=-3",
            ["algo.log_std_min=-3.0: is for continuous actions, CartPole-v1 has discrete ones; leave it out"],
        ),
        (
            "algo=munchausen env=CartPole-v1 tuned=none algo.double=true",
            [
                "algo.double=true: selects an action, of which algo.munchausen's target is the mean; "
                "use algo.double=false"
            ],
        ),
        (
            "algo=sac network.noisy=0.5",
            ["network.noisy=0.5: is for DQN and what is made of it; use network.noisy=null"],
        ),
        (
            "algo=sac env=CartPole-v1 tuned=none critic_network.noisy=0.5",
            ["critic_network.noisy=0.5: is for DQN and what is made of it; use critic_network.noisy=null"],
        ),
        (
            "algo=q_learning env=CartPole-v1",
            ["QLearning needs numbered states, CartPole-v1 observes arrays: use algo=dqn, ddqn or sac"],
        ),
        (
            "algo=q_learning env=FrozenLake-v1 replay=uniform",
            ["QLearning does not learn from UniformReplay: use replay=last"],
        ),
        ("network=dueling algo=sac", ["network=dueling is for discrete actions (algo=dqn or ddqn): use network=mlp"]),
        (
            "algo=sac value=categorical",
            [
                "value.v_min, value.v_max: a categorical value needs the lowest and the highest discounted return that "
                "can be: value.v_min=-100 value.v_max=100 for rewards in [-1, 1] and algo.gamma=0.99; or, whatever "
                "rewards there are, value.v_min=-5 value.v_max=5 normalize_rewards=5"
            ],
        ),
        (
            "algo=c51 env=CartPole-v1 value.v_min=5 value.v_max=-5",
            ["value.v_min=5: must be less than value.v_max=-5; give them the other way"],
        ),
        ("algo=c51 env=CartPole-v1 value.atoms=1", ["value.atoms=1: must be greater than or equal to 2"]),
        ("algo=tqc value.drop=25", ["value.drop=25: must be less than value.quantiles=25"]),
        (
            "algo=qrdqn env=CartPole-v1 value.drop=2",
            ["value.drop=2: is for algorithms with critics; use value.drop=null"],
        ),
        (
            "algo=dqn env=CartPole-v1 value=quantile tuned=none algo.huber=true",
            ["algo.huber=true: is for value=scalar; use algo.huber=false"],
        ),
        ("algo=tqc algo.critics=0", ["algo.critics=0: must be greater than 0"]),
        ("algo.target_of=3", ["algo.target_of=3: there are 2 critics: use algo.critics=3 or more"]),
        ("algo=redq algo.target_of=11", ["algo.target_of=11: there are 10 critics: use algo.critics=11 or more"]),
        ("network.norm=batched", ["network.norm=batched: must be 'none', 'layer' or 'batch'"]),
        *(
            (words, [f"algo.batch_size=1: a batch of one has no variance: use algo.batch_size=256, or {key}=layer"])
            for words, key in (
                ("algo=crossq algo.batch_size=1", "network.norm"),
                ("critic_network.norm=batch algo.batch_size=1", "critic_network.norm"),
                ("algo=dqn env=CartPole-v1 network.norm=batch algo.batch_size=1 tuned=none", "network.norm"),
            )
        ),
        *(
            (
                f"{key}.unit_norm=true",
                [f"{key}.unit_norm=true: needs a norm behind each layer: add {key}.norm=batch or layer"],
            )
            for key in ("network", "critic_network", "actor_network")
        ),
        ("critic_network.dropout=1", ["critic_network.dropout=1: must be less than 1"]),
        ("network.dropout=0.1", ["network.dropout=0.1: is for critics alone: use critic_network.dropout=0.1"]),
        (
            "algo=td3 network.dropout=0.1",
            ["network.dropout=0.1: TD3 leaves no units out: use network.dropout=0"],
        ),
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
        ("precision=low", ["precision=low: must be 'highest', 'high', 'medium' or 'bfloat16'"]),
        ("threads=0", ["threads=0: must be 'auto' or greater than 0"]),
        ("device=gpu", ["device=gpu: must be auto, cpu, cuda or cuda:N"]),
        (
            "replay.capacity=10",
            ["replay.capacity=10 is less than algo.batch_size=256: use replay.capacity=256 or more"],
        ),
        ("network.hidden=256", ["network.hidden=256: must be a list, such as [256,256]"]),
        ("hydra/launcher=slurm", ["hydra/launcher=slurm is for sweeps: add -m"]),
        ("loggers=[tensorbord]", ["loggers=tensorbord: no such loggers; did you mean tensorboard?"]),
        ("encoder=flatt", ["encoder=flatt: no such encoder; did you mean flat?"]),
        ("algo.actor_lr=1e-3", ["algo.actor_lr: is now actor_optimizer.lr"]),
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
        ("env.kwrgs.g=3", ["env.kwrgs: no such key; did you mean env.kwargs?"]),
        ("env.kwargs=3", ["env.kwargs=3: must be a valid dictionary"]),
        ("optimizer={lrr:1e-2}", ["optimizer.lrr: no such key; did you mean optimizer.lr?" + UNTUNED]),
        ("optimizer.amsgrd=true", ["optimizer.amsgrd: no such key; did you mean optimizer.amsgrad?"]),
        ("algo.lr=1e-3", ["algo.lr: no such key; did you mean optimizer.lr?"]),
        ("algo.gamma.x=3", ["algo.gamma={'x': 3}: must be a valid number"]),
        ("+seed=3", ["+seed=3: there is one already, so write seed=3"]),
        ("~algo.tua", ["algo.tua: no such key; did you mean algo.tau?"]),
        ("seed=range(1,3)", ["seed=range(1,3): several values: add -m to sweep over them"]),
        ("-m seed=range(3,1)", ["seed=range(3,1): matches nothing, so there would be no job"]),
        ("-m algo=glob(y*)", ["algo=glob(y*): matches nothing, so there would be no job"]),
        ("-m seed=glob(*)", ["seed=glob(*): matches nothing, so there would be no job"]),
        (
            "-m algo=glob([d]*) env=CartPole-v1",
            ["algo=glob([d]*): the pattern is not understood; quote it, as in \"algo=glob('[a-c]*')\""],
        ),
        (
            "-m algo=glob(*,exclude=[q*,dqn,ddqn,droq,d4pg,c*,tqc,redq,xqc*,bro*,f*,simba]) env=CartPole-v1",
            [
                f"{algo} needs continuous actions, CartPole-v1 has discrete ones: use algo=dqn, ddqn or sac"
                for algo in ("DDPG", "TD3")
            ],
        ),
        (
            "-m hydra/sweeper=basic seed=0,1",
            ["hydra/sweeper=basic: a sweep is planned by hydra/sweeper=grid or optuna"],
        ),
        *(
            (f"optimizer.{key}=true", [f"optimizer.{key}=true: does nothing here; leave it out"])
            for key in ("fused", "capturable", "differentiable")
        ),
        ("learning_rate=1e-3", ["learning_rate: no such key; here it is optimizer.lr"]),
        (
            "algo=q_learning env=Taxi-v4 learning_rate=1",
            ["learning_rate: no such key; did you mean algo.learning_rate?"],
        ),
        ("policy_kwargs.net_arch=[64,64]", ["policy_kwargs: no such key; here it is network.hidden"]),
        ("algo.ent_coef=auto", ["algo.ent_coef: no such key; here it is algo.alpha"]),
        (
            "algo=td3 target_update_interval=9",
            ["target_update_interval: no such key; here it is algo.target_every, which this algo does not have"],
        ),
        ("env_id=CartPole-v1", ["env_id: no such key; here it is env"]),
        ("--total-timesteps=9", ["no such option: --total-timesteps=9; here it is total_steps=VALUE"]),
        ("total_steps=${nothing}", ["total_steps: Interpolation key 'nothing' not found"]),
        (
            "algo._target_=os.system",
            ["algo._target_=os.system: only classes of rl_runner.algos that fit algo, and plugins=[...] may be named"],
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
            "-m algo=dqn,td3,sca env=CartPole-v1 seed=0,1",
            [
                "TD3 needs continuous actions, CartPole-v1 has discrete ones: use algo=dqn, ddqn or sac",
                "algo=sca: no such algo; did you mean sac?",
            ],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistake_gets_its_line(rl_runner, words, expected):
    assert rl_runner(*words.split()) == Ended(2, expected, [])


@pytest.mark.parametrize(
    ("words", "jobs"),
    [
        ("optimizer=glob(*)", ["adam", "adamw", "rmsprop", "sgd"]),
        ("algo=glob('d[q]n') env=CartPole-v1", ["dqn"]),
        ("algo=glob([td*,sac],exclude=s*)", ["td3"]),
        ("env=glob(CartPole*) algo=dqn", ["CartPole-v0", "CartPole-v1"]),
        ("env.kwargs.g=8,9", ["8", "9"]),
        ("+env.kwargs.g=8,9", ["8", "9"]),
        ("env.kwargs={g:8},{g:9}", ["{g:8}", "{g:9}"]),
    ],
)
def test_a_sweep_takes_what_hydra_takes(rl_runner, monkeypatch, words, jobs):
    swept = []
    monkeypatch.setattr("rl_runner.sweep.sweep", lambda jobs, *_: swept.extend(jobs))
    assert rl_runner("-m", *words.split(), "tuned=none") == Ended(0, [], [])
    key = words.lstrip("+").partition("=")[0]
    assert [job[0] for job in swept] == [f"{key}={value}" for value in jobs]


def test_too_many_environments_for_a_glob_are_named_before_they_are_made(rl_runner, monkeypatch):
    monkeypatch.setattr("rl_runner.config.environment.known_ids", lambda: [f"Made-v{i}" for i in range(1_000)])
    ended = rl_runner("-m", "algo=dqn", "env=glob(*)")
    assert (ended.code, ended.files) == (2, [])
    assert re.fullmatch(r"env=glob\(\*\): matches 1,0\d\d environments; name fewer", "\n".join(ended.lines))


@pytest.mark.parametrize(
    "words",
    ["env.kwargs.g=9.0", "+env.kwargs.g=9.0", "++env.kwargs.g=9.0", "env.kwargs={g:9.0}", "+env.kwargs={g:9.0}"],
)
def test_an_argument_of_the_environment_needs_no_plus(rl_runner, tmp_path, words):
    shorter = ["total_steps=20", "learning_starts=20", "eval_every=0", "final_eval_episodes=1", "hydra.run.dir=run"]
    assert rl_runner(words, *shorter).code == 0
    saved = (tmp_path / "run/config.yaml").read_text()
    assert yaml.safe_load(saved)["env"]["kwargs"] == {"g": 9.0}
    first = shlex.split(saved.splitlines()[0])[2]
    assert first == words.lstrip("+")
    for command, code in ((["eval", "run", "env.kwargs.g=8"], 0), (["eval", "run", "+env.kwargs={h: 1}"], 2)):
        assert rl_runner(*command).code == code


def test_keys_that_adam_has_and_its_file_has_not_need_no_plus(rl_runner):
    assert rl_runner("optimizer.amsgrad=true", "optimizer.foreach=true", "dry_run=true") == Ended(0, [], [])


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        ("NAdam ~optimizer.weight_decay optimizer.differentiable=true", "optimizer.differentiable=true: does nothing"),
        ("Adagrad ~optimizer.betas optimizer.fused=true optimizer.foreach=true", "optimizer: `fused` and `foreach`"),
        ("LBFGS", "optimizer._target_=torch.optim.LBFGS: only classes"),
    ],
)
def test_an_optimizer_that_cannot_step_is_refused(rl_runner, optimizer, line):
    ended = rl_runner(*f"tuned=none optimizer._target_=torch.optim.{optimizer}".split())
    assert (ended.code, ended.files, len(ended.lines)) == (2, [], 1)
    assert ended.lines[0].startswith(line)


def test_words_of_other_libraries_name_keys_that_exist(configure):
    exist = set()
    for algo in ("dqn", "ddpg", "td3", "sac"):
        config = configure(f"algo={algo}", f"env={'CartPole-v1' if algo == 'dqn' else 'Pendulum-v1'}", "tuned=none")
        exist |= set(flat_keys(config.model_dump()))
    exist |= {f"{part}.{key}" for part, role in PARTS.items() for key in config.group(role.base)}
    named = {ours.split()[0] for ours in ELSEWHERE.values()}
    assert named <= exist
    assert not set(ELSEWHERE) & exist


def test_what_is_no_run_says_what_it_is(rl_runner, tmp_path):
    for name in ("sweep/seed=0,a/config.yaml", "sweep/sweep.json", "search/sweep.json", "folder/run/config.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for command in ("eval", "export"):
        for place, line in [
            ("sweep", "sweep is a sweep: name one of its 1 runs, such as sweep/seed=0,a"),
            ("search", "search is a sweep: name one of its 0 runs"),
            ("folder", "folder holds no run: there is no config.yaml in it; did you mean folder/run?"),
        ]:
            assert rl_runner(command, place)[:2] == (2, [line])
    (tmp_path / "search/sweep.json").write_text(json.dumps({"command": ["-m", "algo=dqn"], "resumable": False}))
    assert rl_runner("resume", "search")[:2] == (2, ["to go on with search, repeat its command: rl-runner -m algo=dqn"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("network=dueling", "network=dueling: a saved run keeps its network but for single keys; start a new run"),
        ("env=CartPole-v1", "env=CartPole-v1: a saved run keeps its env but for single keys; start a new run"),
        ("seed=1,2", "seed=1,2: a saved run takes key=value, one value each"),
        ("~algo.tau", "~algo.tau: a saved run takes key=value, one value each"),
        ("learning_rate=3", "learning_rate: no such key; here it is optimizer.lr"),
        ("+sed=3", "sed: no such key; did you mean seed?"),
    ],
)
def test_overrides_of_a_saved_run_that_it_cannot_take(rl_runner, configure, tmp_path, words, line):
    save_config(configure(), tmp_path / "config.yaml")
    assert rl_runner("eval", ".", words)[:2] == (2, [line])


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


@pytest.mark.parametrize("words", ["algo=sca", "+sed=1", "-m algo=td3 env=CartPole-v1,Pendulum-v1"])
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
