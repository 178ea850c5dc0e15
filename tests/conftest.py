"""What several test files share: configs as the command line composes them, small agents, double precision."""

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from sweeping import PYTHONPATH, Ended

import rl_runner as package
from rl_runner.__main__ import main
from rl_runner.algos.ddpg import DDPG
from rl_runner.algos.discrete_sac import DiscreteSAC
from rl_runner.algos.dqn import DQN
from rl_runner.algos.sac import SAC
from rl_runner.algos.td3 import TD3
from rl_runner.config.compose import CONFIGS, parse_composed
from rl_runner.config.schema import Config
from rl_runner.encoders import Flat
from rl_runner.envs import Spec
from rl_runner.networks import MLP
from rl_runner.values import Scalar
from rl_runner.wiring import names

torch.set_num_threads(1)

DISCRETE = Spec((3,), torch.float32, None, 4, None, 1, None)
CONTINUOUS = Spec((3,), torch.float32, None, None, 2, 1, None)

COMMON = {"seed": 1, "device": "cpu", "gamma": 0.9, "batch_size": 5, "max_grad_norm": None}
EPSILON = {"epsilon_schedule": "linear", "epsilon_min": 0.1, "epsilon_fraction": 0.5, "epsilon_decay": 0.9}
OFF_POLICY = COMMON | {"spec": CONTINUOUS, "tau": 0.3}
TARGETS = {"target_update": "hard", "target_every": 10, "tau": 0.3, "epsilon_mu": None}
SMOOTHING = {"policy_noise": 0.7, "noise_clip": 0.5, "policy_delay": 2, "actor_objective": "q1"}
ENTROPY = {"alpha": "auto", "initial_alpha": 0.4, "target_entropy": None}
AGENTS: dict[str, tuple[type, dict[str, Any]]] = {
    "dqn": (DQN, COMMON | EPSILON | TARGETS | {"spec": DISCRETE, "total_steps": 100, "double": False, "huber": False}),
    "ddpg": (DDPG, OFF_POLICY | {"noise": "gaussian", "noise_scale": 0.1}),
    "td3": (TD3, OFF_POLICY | SMOOTHING | {"noise_scale": 0.1}),
    "sac": (SAC, OFF_POLICY | ENTROPY | {"log_std_min": -5.0, "log_std_max": 2.0}),
    "discrete_sac": (DiscreteSAC, OFF_POLICY | ENTROPY | {"spec": DISCRETE}),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in every order of the tests."""
    torch.manual_seed(0)


@pytest.fixture
def make_agent() -> Callable[..., Any]:
    """Builds an agent of 3 observations with two hidden layers; any of its keys can be changed."""

    def make(name: str, **keys: Any) -> Any:
        """`network`, `optimizer`: of every part; `actor_lr`, `alpha_lr`: other learning rates for these."""
        target, defaults = AGENTS[name]
        network = keys.pop("network", functools.partial(MLP, hidden=[7, 6], activation="relu", norm="none"))
        optimizer = keys.pop("optimizer", functools.partial(torch.optim.SGD, lr=0.1))
        parts: dict[str, Any] = {"encoder": Flat, "value": Scalar, "network": network}
        for part in ("", "actor_", "critic_", "alpha_"):
            lr = keys.pop(f"{part}lr", None)
            parts[f"{part}network"] = network
            parts[f"{part}optimizer"] = functools.partial(optimizer, lr=lr) if lr else optimizer
        return target(**{part: made for part, made in parts.items() if names(target, part)} | defaults | keys)

    return make


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors are double precision, so that rounding hides no mistake."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """The config that the given words of the command line compose to."""
    plugins = str(Path(package.__file__).parent / "_plugins")
    if plugins not in sys.path:
        sys.path.insert(0, plugins)

    def configure(*overrides: str) -> Config:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra.compose("config", overrides=list(overrides), return_hydra_config=True)
            parsed = parse_composed(composed)
        assert parsed.config is not None, parsed.problems
        return parsed.config

    return configure


@pytest.fixture
def rl_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """Runs a command line in an empty directory; the processes that it starts find the tests' plugin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)
    monkeypatch.setattr(sys, "argv", ["rl-runner"])

    def run(*words: str) -> Ended:
        code = main(words)
        out, err = capsys.readouterr()
        return Ended(code, out.splitlines(), err.splitlines())

    return run
