"""What a config may make the runner execute, import or read: a saved one may come from a stranger."""

import importlib
import inspect
import json
import pkgutil
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from sweeping import TINY, only

from rl_runner.__main__ import main
from rl_runner.config.schema import load_config, save_config, words_to_trust
from rl_runner.config.targets import ROLES, resolve
from rl_runner.config.words import spelt
from rl_runner.errors import UserError, hide

# Every class that may be named, in all of rl_runner, torch.optim and torch.nn; written by hand.
MEMBERS = {
    "algo": {"QLearning", "DQN", "DDPG", "TD3", "SAC", "DiscreteSAC"},
    "network": {"MLP", "Dueling", "Linear", "Residual"},
    "optimizer": {
        "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop",
        "SGD",
    },
    "replay": {"UniformReplay", "PrioritizedReplay", "LastReplay"},
    "encoder": {"Flat", "Conv", "Auto"},
    "value": {"Scalar", "Categorical", "Quantile"},
    "loggers": {"TensorBoard"},
    "hydra.launcher": {"Local", "Slurm", "Ray"},
    "hydra.sweeper": {"Search"},
}  # fmt: skip
EXTRAS = {"Slurm", "Ray", "Search"}  # there with an extra only


def modules(root: str) -> list:
    package = importlib.import_module(root)
    found = [package]
    for info in pkgutil.walk_packages(package.__path__, f"{root}.", onerror=lambda name: None):
        if not info.name.endswith("__main__"):
            try:
                found.append(importlib.import_module(info.name))
            except (ImportError, UserError):  # an extra that is not installed
                continue
    return found


def callables(module) -> list[tuple[str, object]]:
    """Path and object of whatever can be called in a module, and in its classes."""
    found = [(f"{module.__name__}.{name}", value) for name, value in vars(module).items() if callable(value)]
    for path, value in list(found):
        if inspect.isclass(value):
            found += [(f"{path}.{name}", inner) for name, inner in vars(value).items() if callable(inner)]
    return found


def test_every_callable_is_refused_but_by_the_role_of_its_class():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [module for root in ("rl_runner", "torch.optim", "torch.nn") for module in modules(root)]
    walked = [pair for module in found for pair in callables(module)]
    assert len(walked) > 5_000
    allowed: dict[str, set[type]] = {role: set() for role in ROLES}
    for path, found in walked:
        for role, members in MEMBERS.items():
            try:
                resolved = resolve(role, path)
            except UserError:
                # A class is refused under the names that it has in other modules, but not under its own.
                home = getattr(found, "__module__", None)
                own = inspect.isclass(found) and path == f"{home}.{found.__name__}" and "._" not in path
                assert not (own and found.__name__ in members and home.startswith(ROLES[role].package)), (role, path)
            else:
                assert inspect.isclass(resolved), (role, path)
                allowed[role].add(resolved)
    for role, members in MEMBERS.items():
        names = {found.__name__ for found in allowed[role]}
        assert members - EXTRAS <= names <= members, role


SECRET = "RL_RUNNER_TEST_SECRET"
ELSEWHERE = "rl_runner.persistence.replace"  # it writes any file


@pytest.fixture(scope="module")
def sent(tmp_path_factory) -> Path:
    """A `run`, and a `sweep` of two, as a stranger may send them; beside them a module that must not be imported."""
    place = tmp_path_factory.mktemp("sent")
    words = ["algo=dqn", "env=CartPole-v1", "tuned=none", "total_steps=40", "learning_starts=20", "algo.batch_size=4"]
    words += ["final_eval_episodes=1", "network.hidden=[4]", "accelerate=eager", f"hydra.run.dir={place}/run"]
    argv, sys.argv = sys.argv, ["rl-runner"]
    assert main(words) == 0
    sys.argv = argv
    for name in ("a", "b"):
        shutil.copytree(place / "run", place / "sweep" / name)
    (place / "sweep" / "sweep.json").write_text(json.dumps({"command": ["-m", *words], "resumable": True}))
    (place / "trap_package.py").write_text(f"open({str(place / 'imported')!r}, 'w')")
    return place


def snapshot(place: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and content of everything below a directory."""
    paths = [place, *place.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in paths}


def call(target: object) -> dict[str, object]:
    """A group that names a target, with the arguments that `ELSEWHERE` takes."""
    return {"_target_": target, "path": "written", "content": "!!binary eA==", "sync": False}


TARGETS = [
    ELSEWHERE,
    "rl_runner.logger.Logger",
    "rl_runner.persistence.write_json",
    "rl_runner.sweep.engines.work",
    "rl_runner.sweep.engines.Local",
    "rl_runner.run.run",
    "rl_runner.algos.dqn.Tensor",
    "rl_runner.algos.sac.generator",
    "rl_runner.algos.dqn.DQN.act",
    "rl_runner.algos.td3.DDPG",
    "rl_runner.algos.dqn.torch.hub.load",
    "rl_runner.networks.NetworkFactory",
    "rl_runner.networks.QNetwork",
    "rl_runner.replay.check_memory",
    "rl_runner.optim.build",
    "rl_runner.protocols.Agent",
    "torch.optim.Optimizer",
    "torch.optim.lr_scheduler.LambdaLR",
    "torch.optim.optimizer.functools.partial",
    "torch.nn.Linear",
    "torch.nn.Module",
    "torch.load",
    "os.system",
    "builtins.exec",
    "trap_package.Agent",
    "trap_package",
    "rl_runner.algos.trap_package.Agent",
    "rl_runner.algos..dqn.DQN",
    "rl_runner.algos./trap_package.Agent",
    "",
    None,
    ["os.system"],
    {"_target_": "os.system"},
]
BEYOND_THE_FILE = [
    f"${{oc.env:{SECRET}}}",
    f"${{ oc.env : {SECRET} }}",
    f"before ${{oc.decode:${{oc.env:{SECRET}}}}} after",
    f"${{${{.name}}:{SECRET}}}",
    "${path_safe:x}",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${oc.select:env.id}",
]
CHANGES: list[dict[str, object]] = [
    *({group: call(target)} for group in ("algo", "network", "optimizer", "replay") for target in TARGETS),
    *({group: value} for group in ("algo", "env", "chosen", "plugins") for value in ("x", 3, None, [{}])),
    *({"env": {"id": "CartPole-v1", "kwargs": {"a": text, "name": "oc.env"}}} for text in BEYOND_THE_FILE),
    *({"env": {"id": "CartPole-v1", "kwargs": {"a": [{"b": text}], "name": "oc.env"}}} for text in BEYOND_THE_FILE),
    *({"seed": text} for text in BEYOND_THE_FILE),
    *({"chosen": {"algo": text}} for text in BEYOND_THE_FILE),
    {"chosen": f"${{oc.env:{SECRET}}}"},
    {"env": f"${{oc.env:{SECRET}}}"},
    {"seed": "${total_steps}", "total_steps": "${seed}"},
    {"seed": "${nothing}"},
    {"env": {"id": "trap_package:Trap-v0"}},
    {"env": {"id": "${.kwargs.id}", "kwargs": {"id": "trap_package:Trap-v0"}}},
    {"plugins": ["trap_package"]},
    {"plugins": ["trap_package"], "algo": call("trap_package.Agent")},
    {"plugins": ["rl_runner"], "algo": call(ELSEWHERE)},
    {"plugins": ["os"], "algo": call("os.system")},
    {"plugins": "trap_package"},
]
COMMANDS = [["resume", "run"], ["eval", "run"], ["export", "run"], ["resume", "sweep"]]


def test_what_a_stranger_changed_is_refused_and_nothing_written(sent, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(SECRET, "hunter2hunter2")
    monkeypatch.syspath_prepend(sent)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sent, tmp_path / "sent")
    original = yaml.safe_load((sent / "run/config.yaml").read_text())
    files = {"run": tmp_path / "sent/run/config.yaml", "sweep": tmp_path / "sent/sweep/b/config.yaml"}
    # Each change meets one command, each target every command: their number is odd.
    assert len(TARGETS) % 2 == 1
    for i, change in enumerate(CHANGES):
        command, place = COMMANDS[i % len(COMMANDS)]
        changed = yaml.safe_dump(original | change)
        for name, file in files.items():
            file.write_text(
                f"# rl-runner plugins=[trap_package]\n{changed if name == place else yaml.safe_dump(original)}"
            )
        before = snapshot(tmp_path)
        assert main([command, str(tmp_path / "sent" / place)]) == 2, (command, change)
        out, err = capsys.readouterr()
        assert out == "", change
        assert 1 <= len(err.splitlines()) <= 4, (change, err)
        assert "hunter2" not in err, (change, err)
        assert snapshot(tmp_path) == before, change
    assert "trap_package" not in sys.modules
    assert not (sent / "imported").exists()


def test_naming_what_no_plugin_is_trusts_nothing(sent, capsys):
    for name in ("rl_runner", "rl_runner.persistence", "os", "subprocess", "torch"):
        assert main(["eval", str(sent / "run"), f"plugins=[{name}]", f"algo._target_={name}.x"]) == 2
        assert f"plugins: {name} is no package of yours" in capsys.readouterr().err


def test_a_report_executes_nothing_of_a_config(sent, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(SECRET, "hunter2hunter2")
    monkeypatch.syspath_prepend(sent)
    monkeypatch.chdir(tmp_path)
    for i, group in enumerate(("algo", "network", "optimizer", "replay", "env")):
        run = tmp_path / f"run{i}"
        shutil.copytree(sent / "run", run)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config[group] = config[group] | call(ELSEWHERE) | {"secret": BEYOND_THE_FILE[0]}
        config |= {"plugins": ["trap_package"]}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = [path.name for path in tmp_path.iterdir()]
    main(["report", str(tmp_path), "--out", str(tmp_path / "page")])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "page"])
    texts = [path.read_text(errors="replace") for path in (tmp_path / "page").rglob("*.*ml")]
    assert texts
    assert "hunter2" not in "".join([*texts, *capsys.readouterr()])
    assert not (sent / "imported").exists()


def test_what_the_command_line_types_again_is_trusted(sent, tmp_path, monkeypatch):
    monkeypatch.setenv(SECRET, "hunter2hunter2")
    file = tmp_path / "config.yaml"
    config = yaml.safe_load((sent / "run/config.yaml").read_text())
    config["env"]["kwargs"] = {"password": f"${{oc.env:{SECRET}}}", "headers": [f"key ${{oc.env:{SECRET}}}"]}
    file.write_text(yaml.safe_dump(config | {"seed": "${final_eval_episodes}"}))
    with pytest.raises(UserError) as refused:
        load_config(file)
    typed = [shlex.split(line.partition(" add ")[2])[0] for line in str(refused.value).splitlines()]
    assert len(typed) == 2
    loaded = load_config(file, typed)
    assert loaded.env.kwargs == {"password": "hunter2hunter2", "headers": ["key hunter2hunter2"]}
    assert loaded.seed == 1
    assert words_to_trust(loaded) == typed  # what a sweep gives its jobs
    save_config(loaded, tmp_path / "again.yaml")
    assert "hunter2" not in (tmp_path / "again.yaml").read_text()
    for one, other in (("password", 0), (r"headers\.0", 1)):  # in the file's order, headers are first
        with pytest.raises(UserError, match=one):
            load_config(file, [typed[other]])
    with pytest.raises(UserError, match="password"):  # a dict is merged: what it does not name stays the file's
        load_config(file, ["env.kwargs={g: 9.0}"])


def test_packages_that_the_command_line_names_are_trusted(sent, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "kind_package").mkdir()
    (tmp_path / "kind_package/__init__.py").write_text("import os\nfrom torch import nn\nclass Named: ...\n")
    (tmp_path / "kind_package/inner.py").write_text(
        "from torch import nn\ndef network(*, n_in, n_out, lead=(), generator=None): return nn.Linear(n_in, n_out)\n"
    )
    assert resolve("network", "kind_package.inner.network", ["kind_package"]).__name__ == "network"  # a factory
    for target in ("kind_package.Named", "kind_package.os.system", "kind_package.nn.Linear", "kind_package.os"):
        with pytest.raises(UserError):
            resolve("network", target, ["kind_package"])
    config = yaml.safe_load((sent / "run/config.yaml").read_text())
    config |= {"network": {"_target_": "kind_package.inner.network"}, "plugins": ["kind_package.inner"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    for trusted in ("plugins=[kind_package]", "plugins=[kind_package.inner]"):
        assert load_config(tmp_path / "config.yaml", [trusted]).plugins == [trusted[9:-1]]
    with pytest.raises(UserError, match=r"add plugins=\[kind_package\]"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("seed=@", "seed=@: must be a valid integer"),
        ("seed=x@y", "seed=x@y: must be a valid integer"),
        ("env.kwargs.password=@", "'password': '@'"),
        ("+env.kwargs.password=@ +env.kwargs.again=${env.kwargs.password}", "'again': '@'"),
        ("network.activation=@", "network.activation=@: must be"),
        ("network.hidden=[@]", "network.hidden=@: must be"),
        ("algo.gamma=${seed} seed=@", "algo.gamma=@: must be"),
        ("device=@", "device=@: must be"),
        ("env.id=@", "env=@: no such environment"),
        ("plugins=[@]", "plugins: importing @ fails"),
        ("algo._target_=@", "algo._target_=@: only"),
        ('seed="${oc.env:${threads}}" threads=@', "Environment variable '@' not found"),
    ],
)
def test_no_error_shows_what_came_from_the_process_environment(words, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(SECRET, "hunter2hunter2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rl-runner"])
    text = f"${{oc.env:{SECRET}}}"
    code = 0
    try:
        code = main(words.replace("@", text).split())
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert "hunter2" not in err
    assert shown.replace("@", text) in err
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_part_of_another_does_not_uncover_its_rest():
    hide("hunter2", "${oc.env:SHORT}")  # first, and again after the longer one
    hide("hunter2, and the rest", "${oc.env:LONG}")
    hide("hunter2", "${oc.env:SHORT}")
    assert str(UserError("a=hunter2, and the rest, b=hunter2")) == "a=${oc.env:LONG}, b=${oc.env:SHORT}"


def test_secrets_stay_out_of_files_however_they_are_written(configure, tmp_path, monkeypatch):
    monkeypatch.setenv(SECRET, "hunter2hunter2")
    texts = [f"${{oc.env:{SECRET}}}", f"${{ oc.env : {SECRET} }}", "${env.kwargs.a}", f"a-${{oc.env:{SECRET}}}-b"]
    texts += [f"${{oc.decode:${{oc.env:{SECRET}}}}}", "${.a}"]
    kwargs = dict(zip("abcdef", texts, strict=True))
    words = [f"+env.kwargs.{name}={spelt([name], text).partition('=')[2]}" for name, text in kwargs.items()]
    config = configure(*words)
    assert "hunter2hunter2" in config.env.kwargs["c"]
    save_config(config, tmp_path / "config.yaml")
    assert "hunter2" not in (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["env"]["kwargs"] == kwargs


def test_jobs_of_an_own_sweep_read_the_process_environment_again(rl_runner, tmp_path, monkeypatch):
    monkeypatch.setenv("RL_RUNNER_TEST_WHAT", "calm")
    ended = rl_runner("-m", *TINY, "env.kwargs.what=${oc.env:RL_RUNNER_TEST_WHAT}", "seed=0", "hydra.sweep.dir=sweep")
    assert ended.code == 0, ended.err
    config = yaml.safe_load(only(tmp_path, "sweep/*/config.yaml").read_text())
    assert config["env"]["kwargs"] == {"what": "${oc.env:RL_RUNNER_TEST_WHAT}"}
