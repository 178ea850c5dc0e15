"""Networks and optimizers of single parts of an agent: groups that hold differences to `network` and `optimizer`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import CONTINUOUS
from sweeping import Ended

from rl_runner.__main__ import main
from rl_runner.config.schema import Config, load_config, renewed, save_config, written_values
from rl_runner.errors import UserError
from rl_runner.networks import MLP
from rl_runner.persistence.checkpoint import Saved
from rl_runner.resume import check_config
from rl_runner.run import build_agent

Configure = Callable[..., Config]
PARTED = ("plugins=[parted]", "algo._target_=parted.Parted", "tuned=none")
SMALL = ("network.hidden=[8]", "optimizer.lr=0.5")


def wired(config: Config) -> dict[str, Any]:
    return build_agent(config, CONTINUOUS)[0].wired


def test_parts_are_like_the_groups_that_they_differ_from_when_nothing_differs(configure: Configure) -> None:
    parts = wired(configure(*PARTED, *SMALL))
    for name in ("actor_network", "critic_network"):
        assert (parts[name].func, parts[name].keywords) == (MLP, parts["network"].keywords)
    for name in ("actor_optimizer", "alpha_optimizer"):
        assert (parts[name].func, parts[name].keywords) == (torch.optim.Adam, parts["optimizer"].keywords)


def test_a_key_changes_one_part_alone(configure: Configure) -> None:
    typed = ("++critic_network.hidden=[9,9.0]", "++actor_optimizer.lr=1", "++alpha_optimizer.amsgrad=true")
    config = configure(*PARTED, *SMALL, *typed)
    assert (config.critic_network, config.actor_optimizer) == ({"hidden": [9, 9]}, {"lr": 1.0})
    parts = wired(config)
    assert parts["critic_network"].keywords == parts["network"].keywords | {"hidden": [9, 9]}
    assert parts["actor_network"].keywords == parts["network"].keywords
    assert parts["actor_optimizer"].keywords == parts["optimizer"].keywords | {"lr": 1.0}
    assert parts["alpha_optimizer"].keywords == parts["optimizer"].keywords | {"amsgrad": True}


def test_a_class_of_its_own_takes_the_groups_place(configure: Configure) -> None:
    parts = wired(configure(*PARTED, *SMALL, "optimizer@actor_optimizer=sgd", "network@critic_network=mlp"))
    assert parts["actor_optimizer"].func is torch.optim.SGD
    assert parts["actor_optimizer"].keywords["lr"] == 1e-2
    assert parts["critic_network"].keywords["hidden"] == [256, 256]
    with_target = wired(configure(*PARTED, *SMALL, "++alpha_optimizer._target_=torch.optim.NAdam"))
    assert with_target["alpha_optimizer"].func is torch.optim.NAdam
    assert with_target["alpha_optimizer"].keywords == {}


def test_a_file_holds_the_differences_as_typed_and_opens_again(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = configure(*PARTED, "++critic_network.hidden=[9]", "optimizer@actor_optimizer=sgd", "actor_optimizer.lr=2")
    save_config(config, path)
    saved = yaml.safe_load(path.read_text())
    assert saved["critic_network"] == {"hidden": [9]}
    assert saved["actor_optimizer"]["_target_"] == "torch.optim.SGD"
    assert not {"actor_network", "alpha_optimizer", "critic_optimizer"} & saved.keys()
    assert load_config(path, ["plugins=[parted]"]).model_dump() == config.model_dump()
    changed = load_config(path, ["plugins=[parted]", "critic_network.hidden=[5]", "alpha_optimizer.lr=3"])
    assert (changed.critic_network, changed.alpha_optimizer) == ({"hidden": [5]}, {"lr": 3.0})


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("critic_network.hiden=[3]", ["critic_network.hiden: no such key; did you mean critic_network.hidden?"]),
        ("critic_network={hiden:[3]}", ["critic_network.hiden: no such key; did you mean critic_network.hidden?"]),
        ("critc_network.hidden=[3]", ["critc_network: no such key; did you mean critic_network?"]),
        ("critic_network.hidden=[3,-1]", ["critic_network.hidden=-1: must be greater than 0"]),
        ("actor_optimizer.lr=fast", ["actor_optimizer.lr=fast: must be a valid number"]),
        ("alpha_optimizer.lr=-1", ["alpha_optimizer: Invalid learning rate: -1.0"]),
        ("alpha_optimizer.fused=true", ["alpha_optimizer.fused=true: does nothing here; leave it out"]),
        ("critic_network=duelin", ["critic_network=duelin: no such critic_network; did you mean dueling?"]),
        (
            "critic_network=dueling",
            ["critic_network=dueling is for discrete actions (algo=dqn or ddqn): use critic_network=mlp"],
        ),
        ("critic_network._target_=rl_runner.networks.MLP", ["critic_network.hidden, critic_network.activation: "]),
        (
            "critic_network._target_=os.system",
            ["critic_network._target_=os.system: only classes of rl_runner.networks"],
        ),
        ("critic_optimizer.lr=3", ["algo=sac has no critic_optimizer; use optimizer"]),
        ("network.hidden=[-1] critic_network.layer_norm=true", ["network.hidden=-1: must be greater than 0"]),
    ],
)
def test_mistakes_name_the_part(
    rl_runner: Callable[..., Ended], capsys: pytest.CaptureFixture[str], words: str, lines: list[str]
) -> None:
    try:
        code = main([*PARTED, *words.split()])
    except SystemExit as end:
        code = end.code
    assert code == 2
    told = capsys.readouterr().err.splitlines()
    assert [line[: len(start)] for line, start in zip(told, lines, strict=True)] == lines


def test_a_sweep_takes_choices_of_a_part(rl_runner: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    swept: list[tuple[list[str], Config]] = []
    monkeypatch.setattr(
        "rl_runner.sweep.sweep", lambda jobs, configs, *_: swept.extend(zip(jobs, configs, strict=True))
    )
    assert rl_runner("-m", *PARTED, "actor_optimizer=adam,sgd", "critic_network.hidden=[3],[4]").code == 0
    assert [job[-2:] for job, _ in swept] == [
        [f"actor_optimizer={name}", f"critic_network.hidden=[{n}]"] for name in ("adam", "sgd") for n in (3, 4)
    ]
    assert [config.critic_network["hidden"] for _, config in swept] == [[3], [4], [3], [4]]


def test_a_saved_key_that_has_another_name_now_is_read(configure: Configure, tmp_path: Path) -> None:
    """As in a run from before the parts, by an algorithm that took it and no longer does."""
    algo = {"_target_": "rl_runner.algos.dqn.DQN", "gamma": 0.9, "actor_lr": 0.5, "alpha_lr": None}
    saved = {"seed": 1, "algo": algo}
    assert renewed(saved, []) == {
        "seed": 1,
        "algo": {"_target_": "rl_runner.algos.dqn.DQN", "gamma": 0.9},
        "actor_optimizer": {"lr": 0.5},
    }
    assert renewed(saved | {"actor_optimizer": {"lr": 2.0}}, [])["actor_optimizer"] == {"lr": 2.0}
    assert renewed({"algo": algo | {"_target_": "os.system"}}, [])["algo"]["actor_lr"] == 0.5
    path = tmp_path / "config.yaml"
    save_config(configure("algo=dqn", "env=CartPole-v1"), path)
    saved = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(saved | {"algo": saved["algo"] | {"actor_lr": None}}))
    assert load_config(path).algo == saved["algo"]


@pytest.mark.parametrize("part", [3, "x", None, ["os.system"], {"_target_": "os.system"}, {"_target_": None}])
def test_a_saved_part_that_is_none_is_refused(rl_runner: Callable[..., Ended], configure: Configure, part: Any) -> None:
    save_config(configure(), Path("config.yaml"))
    Path("config.yaml").write_text(
        yaml.safe_dump(yaml.safe_load(Path("config.yaml").read_text()) | {"critic_network": part})
    )
    ended = rl_runner("eval", ".")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert "critic_network" in ended.err[0]


def test_a_checkpoint_that_names_a_package_has_it_imported_by_nobody(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stranger.py").write_text("class Agent: ...")
    monkeypatch.syspath_prepend(tmp_path)
    config = configure("algo=dqn", "env=CartPole-v1")
    claimed = {"plugins": ["stranger"], "algo": {"_target_": "stranger.Agent", "actor_lr": 1.0}}
    saved = Saved(1, 0, {"config": written_values(config) | claimed}, None, {})
    with pytest.raises(UserError, match=r"algo\._target_ is stranger\.Agent there"):
        check_config(config, saved, tmp_path)
    assert "stranger" not in sys.modules
