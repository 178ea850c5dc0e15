"""Composition, precedence, the schema from constructors, the allow-list of targets, and the file of a saved run."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from pydantic import PositiveInt

from rl_runner.config.compose import CONFIGS
from rl_runner.config.problems import closest
from rl_runner.config.schema import load_config, save_config
from rl_runner.config.targets import factory, read_group, resolve
from rl_runner.errors import UserError
from rl_runner.protocols import Agent

TUNED = sorted(path.stem for path in (CONFIGS / "tuned").glob("*_*-v*.yaml"))


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


@pytest.mark.parametrize(
    "words",
    [
        *([f"algo={name}", "env=FrozenLake-v1"] for name in files("algo")),
        *([f"env={name}"] for name in files("env")),
        *([f"network={name}", "algo=dqn"] for name in files("network")),
        *([f"optimizer={name}"] for name in files("optimizer")),
        *([f"replay={name}", "tuned=none"] for name in files("replay")),
    ],
    ids=" ".join,
)
def test_every_file_of_a_group_composes_and_its_keys_fit_its_constructor(configure, words):
    group, name = words[0].split("=")
    config = configure(*words)
    assert config.chosen[group] == name
    if group != "env":
        constructor = factory(group, getattr(config, group))
        assert constructor.func.__name__ == getattr(config, group)["_target_"].rpartition(".")[2]


@pytest.mark.parametrize("name", TUNED)
def test_every_tuned_file_is_composed_by_itself_and_changes_something(configure, name):
    algo, env = name.rsplit("_", 1) if not name.startswith("q_") else ("q_learning", name.removeprefix("q_learning_"))
    tuned, untuned = configure(f"algo={algo}", f"env={env}"), configure(f"algo={algo}", f"env={env}", "tuned=none")
    assert tuned.chosen["tuned"] == name
    assert "tuned" not in untuned.chosen
    assert tuned.model_dump(exclude={"chosen"}) != untuned.model_dump(exclude={"chosen"})


def test_run_level_values_lose_to_groups_groups_to_tuned_tuned_to_the_command_line(configure):
    tuned = OmegaConf.load(CONFIGS / "tuned/dqn_Acrobot-v1.yaml")
    dqn = ["algo=dqn", "env=Acrobot-v1"]
    assert configure("algo=sac", "env=Hopper-v5", "tuned=none").optimizer["lr"] == 3e-4  # the optimizer's file
    assert configure(*dqn, "tuned=none").optimizer["lr"] == 1e-3  # the algorithm's
    assert configure(*dqn, "tuned=none").algo["batch_size"] == 64
    assert configure(*dqn).algo["batch_size"] == tuned.algo.batch_size != 64
    assert configure(*dqn, "optimizer.lr=0.5").optimizer["lr"] == 0.5

    assert configure(*dqn, "tuned=none").update_every == 1  # run level
    assert configure(*dqn).update_every == tuned.update_every != 1
    assert configure(*dqn, "update_every=3").update_every == 3
    assert configure("algo=dqn", "env=FrozenLake-v1").learning_starts == 1_000
    assert configure("algo=q_learning", "env=FrozenLake-v1").learning_starts == 0


def test_default_is_sac_on_pendulum(configure):
    config = configure()
    assert (config.chosen["algo"], config.env.id, config.chosen["tuned"]) == ("sac", "Pendulum-v1", "sac_Pendulum-v1")


def test_any_id_is_an_environment_and_real_files_win(configure):
    assert configure("env=my_pkg.mod:Foo-v0").env.id == "my_pkg.mod:Foo-v0"
    assert configure("env=ALE/Pong-v5").env.id == "ALE/Pong-v5"
    config = configure("env=frozen_lake_dry", "+env.kwargs.map_name=8x8")
    assert config.env.id == "FrozenLake-v1"
    assert config.env.kwargs == {"is_slippery": False, "map_name": "8x8"}


def test_numbers_get_their_type(configure):
    config = configure("total_steps=1e5", "algo.batch_size=64.0", "algo.alpha=1", "optimizer.lr=1")
    assert (config.total_steps, type(config.total_steps)) == (100_000, int)
    assert (config.algo["batch_size"], type(config.algo["batch_size"])) == (64, int)
    assert (config.algo["alpha"], type(config.algo["alpha"])) == (1.0, float)


def test_config_cannot_be_changed(configure):
    with pytest.raises(ValueError, match="frozen"):
        configure().seed = 1


def test_factory_leaves_what_the_runner_wires_to_the_caller(configure):
    config = configure("optimizer=sgd", "optimizer.lr=0.25", "optimizer.momentum=0.5", "tuned=none")
    parameter = torch.zeros(3, requires_grad=True)
    optimizer = factory("optimizer", config.optimizer)(params=[parameter])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert optimizer.param_groups[0]["momentum"] == 0.5


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "torch.nn.parallel.distributed.os.getcwd",
        "torch.optim.optimizer.functools.partial",
        "rl_runner.config.schema.yaml.safe_load",
        "rl_runner.persistence.os",
        "rl_runner.persistence.RESULT",
        "torch.nn",
        "torch.nnevil.Thing",
    ],
)
def test_target_outside_the_allow_list_is_refused(target):
    with pytest.raises(UserError, match=r"may be named|no such class"):
        resolve("algo", target)


def test_refusing_a_target_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "trap_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="may be named"):
        resolve("algo", "trap_package.Agent")
    with pytest.raises(SystemExit, match="imported"):
        resolve("algo", "trap_package.Agent", plugins=["trap_package"])


class Sized(Agent):
    """An agent of somebody else."""

    def __init__(self, *, spec: object, size: PositiveInt, shape: list[int] | None = None, anything=3):
        pass


def test_a_strangers_constructor_is_the_schema_of_its_group():
    group = {"_target_": f"{__name__}.Sized", "_partial_": True, "size": 2.0, "shape": [1, 2]}
    assert read_group("algo", group, [__name__]).values == {
        "_target_": f"{__name__}.Sized",
        "size": 2,
        "shape": [1, 2],
    }
    problems = read_group("algo", {**group, "size": 0, "sape": 1, "shape": [1.5], "spec": 1}, [__name__]).problems
    assert sorted(problems) == [
        "algo.sape: no such key; did you mean algo.shape?",
        "algo.shape=1.5: must be a valid integer, got a number with a fractional part",
        "algo.size=0: must be greater than 0",
        "algo.spec: no such key; did you mean algo.shape?",
    ]
    problems = read_group("algo", {"_target_": f"{__name__}.Sized"}, [__name__]).problems
    assert problems == ["algo.size: missing; give it a value"]


def test_saved_config_comes_back_equal_with_its_command_line(configure, tmp_path):
    words = ["algo=ddqn", "env=CartPole-v1", "seed=3", "optimizer.lr=1e-3", "+env.kwargs.sutton_barto_reward=true"]
    config, path = configure(*words), tmp_path / "config.yaml"
    save_config(config, path)
    assert path.read_text().startswith(f"# rl-runner {' '.join(words)}\n")
    assert load_config(path) == config
    assert yaml.safe_load(path.read_text()) == config.model_dump(mode="json")
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_overrides_of_a_saved_config(configure, tmp_path):
    path = tmp_path / "config.yaml"
    save_config(configure(), path)
    assert load_config(path, ["total_steps=4e4", "optimizer.lr=0.5"]).total_steps == 40_000
    with pytest.raises(UserError) as refused:
        load_config(path, ["totl_steps=3", "optimizer", "algo.tau=0.5"])
    assert str(refused.value).splitlines() == [
        "totl_steps: no such key; did you mean total_steps?",
        "optimizer: not understood; a setting is key=value, --help shows the commands",
    ]
    with pytest.raises(UserError, match=r"config.yaml: algo.tau=5: must be less than or equal to 1"):
        load_config(path, ["algo.tau=5"])


def test_secrets_of_the_process_environment_stay_out_of_files(configure, tmp_path, monkeypatch):
    monkeypatch.setenv("RL_RUNNER_TEST_SECRET", "hunter2")
    config, path = configure("+env.kwargs.password=${oc.env:RL_RUNNER_TEST_SECRET}"), tmp_path / "config.yaml"
    assert config.env.kwargs == {"password": "hunter2"}
    save_config(config, path)
    assert "hunter2" not in path.read_text()
    with pytest.raises(UserError, match="if you trust it, add"):  # the file may as well come from a stranger
        load_config(path)
    typed = load_config(path, ["env.kwargs.password=${oc.env:RL_RUNNER_TEST_SECRET}"])
    assert typed.env.kwargs == {"password": "hunter2"}


def change(path: Path, **keys: object) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **keys}))


def test_a_saved_config_from_a_stranger_executes_nothing(configure, tmp_path, monkeypatch):
    (tmp_path / "trap_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "config.yaml"
    for keys, complaint in [
        ({"algo": {"_target_": "os.system", "command": "touch trap"}}, "may be named"),
        ({"algo": {"_target_": "torch.nn.parallel.distributed.os.getcwd"}}, "may be named"),
        ({"algo": {"_target_": "trap_package.Agent"}, "plugins": ["trap_package"]}, r"add plugins=\[trap_package\]"),
        ({"env": {"id": "trap_package:Trap-v0"}}, r"add plugins=\[trap_package\]"),
    ]:
        save_config(configure(), path)
        change(path, **keys)
        with pytest.raises(UserError, match=complaint):
            load_config(path)
    assert "trap_package" not in sys.modules
    path.write_text("!!python/object/apply:os.system ['touch trap']")
    with pytest.raises(UserError, match="cannot be read"):
        load_config(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.yaml", "trap_package.py"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "holds no run"),
        ("a: [", "cannot be read"),
        ("- 1", "not the config"),
        ("seed: 1", "total_steps, num_envs, .*: missing; give them values"),
    ],
)
def test_what_is_no_saved_config_says_so(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=complaint):
        load_config(tmp_path / "config.yaml")


def test_closest():
    assert closest("PENDULUM-V1", ["CartPole-v1", "Pendulum-v1"]) == "Pendulum-v1"
    assert closest("nothing like it", ["CartPole-v1", "Pendulum-v1"]) is None
