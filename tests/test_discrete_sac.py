"""`algo=sac` where actions are discrete, and noisy networks, on the command line: run, resume, eval, export, sweep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sweeping import Ended

from rl_runner.algos.discrete_sac import DiscreteSAC
from rl_runner.config.schema import load_config
from rl_runner.saved_policy import load

SHORT = (
    "env=CartPole-v1", "tuned=none", "network.hidden=[8]", "algo.batch_size=8", "learning_starts=20", "log_every=20",
    "total_steps=60", "eval_every=0", "final_eval_episodes=1", "hydra.run.dir=run",
)  # fmt: skip
Runner = Callable[..., Ended]


def saved(tmp_path: Path) -> dict[str, Any]:
    return yaml.safe_load((tmp_path / "run/config.yaml").read_text())


def test_sac_is_discrete_where_actions_are(rl_runner: Runner, tmp_path: Path) -> None:
    ended = rl_runner("algo=sac", *SHORT)
    assert (ended.code, ended.err) == (0, [])
    assert ended.out[0] == "sac on CartPole-v1, seed 0"
    assert "target entropy 0.485 nats, of 0.693 at most" in ended.out
    algo = saved(tmp_path)["algo"]
    assert algo["_target_"] == "rl_runner.algos.discrete_sac.DiscreteSAC"
    assert not any(key.startswith("log_std") for key in algo)

    ended = rl_runner("resume", "run", "total_steps=80")
    assert (ended.code, ended.err) == (0, [])
    assert rl_runner("eval", "run", "--episodes", "1").code == 0
    assert rl_runner("export", "run").code == 0
    agent, step, _ = load(load_config(tmp_path / "run/config.yaml"), tmp_path / "run")
    assert isinstance(agent, DiscreteSAC)
    assert step == 80
    obs = torch.randn(9, 4)
    program = torch.export.load(tmp_path / "run/policy.pt2").module()
    assert torch.equal(program(obs), agent.act(obs))


def test_one_sweep_holds_both_kinds(rl_runner: Runner) -> None:
    ended = rl_runner("-m", "algo=sac", "env=CartPole-v1,Pendulum-v1", "dry_run=true")
    assert (ended.code, ended.err) == (0, [])
    assert sum(env in line for line in ended.out for env in ("CartPole-v1", "Pendulum-v1")) == 2


def test_heads_dueling_and_ensembles_go_with_it(rl_runner: Runner) -> None:
    for words in (
        ("algo=tqc",),
        ("algo=sac", "network=dueling", "value=categorical", "value.v_min=0", "value.v_max=50"),
        ("algo=sac", "algo.critics=5", "algo.actor_reduce=mean", "replay=prioritized", "replay.n_step=3"),
    ):
        ended = rl_runner(*words, *SHORT, "fresh=true")
        assert (ended.code, ended.err) == (0, [])


def test_a_class_of_the_users_own_is_not_replaced(rl_runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from rl_runner.algos.sac import SAC\nclass Own(SAC):\n    pass\n")
    ended = rl_runner("algo=sac", "plugins=[own]", "algo._target_=own.Own", *SHORT)
    assert ended.code == 2
    assert ended.err == ["Own needs continuous actions, CartPole-v1 has discrete ones: use algo=dqn, ddqn or sac"]


def test_a_temperature_that_runs_away_is_said_in_one_line(rl_runner: Runner) -> None:
    words = ("algo.target_entropy=0.7", "algo.initial_alpha=200")  # log 2 = 0.693
    ended = rl_runner("algo=sac", *SHORT, *words)
    assert ended.code == 0
    assert len(ended.err) == 1
    assert ended.err[0].startswith("warning: policy/alpha is at ")
    assert "set algo.target_entropy lower" in ended.err[0]


@pytest.mark.parametrize(
    ("typed", "epsilon", "said"),
    [
        ((), 0.0, "explores by noise in the network's layers; ε is 0"),
        (("algo.epsilon_min=0.3",), 0.3, "explores by noise in the network's layers, and by ε"),
    ],
)
def test_noise_takes_the_place_of_epsilon_unless_one_is_typed(
    rl_runner: Runner, tmp_path: Path, typed: tuple[str, ...], epsilon: float, said: str
) -> None:
    ended = rl_runner("algo=dqn", "network.noisy=0.5", *SHORT, *typed)
    assert (ended.code, ended.err) == (0, [])
    assert any(line.startswith(said) for line in ended.out)
    assert saved(tmp_path)["algo"]["epsilon_min"] == epsilon
    assert rl_runner("resume", "run", "total_steps=80").code == 0
    config = load_config(tmp_path / "run/config.yaml")
    assert config.algo["epsilon_min"] == epsilon
    agent: Any = load(config, tmp_path / "run")[0]
    assert agent.epsilon(80) == pytest.approx(epsilon)


def test_rainbow_is_its_six_parts(configure: Any) -> None:
    config = configure("algo=rainbow", "env=CartPole-v1", "tuned=none")
    kinds = [getattr(config, group)["_target_"].rpartition(".")[2] for group in ("algo", "network", "value", "replay")]
    assert kinds == ["DQN", "Dueling", "Categorical", "PrioritizedReplay"]
    assert (config.algo["double"], config.network["noisy"], config.replay["n_step"]) == (True, 0.5, 3)
    munchausen = configure("algo=munchausen", "env=CartPole-v1", "tuned=none").algo
    assert (munchausen["munchausen"], munchausen["temperature"], munchausen["log_pi_min"]) == (0.9, 0.03, -1.0)
    assert "munchausen" not in configure("algo=dqn", "env=CartPole-v1").algo
