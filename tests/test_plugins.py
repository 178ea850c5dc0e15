"""A stranger's package: an agent, a network and an environment, chosen by YAML in a directory of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = '''
"""Registers an environment when imported."""
import gymnasium as gym
import numpy as np
import torch
from pydantic import PositiveFloat
from torch import nn

gym.register("Corridor-v0", entry_point="somebodys_rl:Corridor", max_episode_steps=20)


class Corridor(gym.Env):
    observation_space = gym.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gym.spaces.Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0.0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        assert action in self.action_space
        self.place += 1 if action == 6 else -1
        return np.array([self.place], np.float32), self.place, abs(self.place) > 5, False, {}


class Affine(nn.Module):
    def __init__(self, *, n_in, n_out, lead=(), generator=None, scale: PositiveFloat):
        super().__init__()
        self.scale, self.affine = scale, nn.Linear(n_in, n_out)

    def forward(self, x):
        return self.affine(x) * self.scale


class Greedy:
    actions = "discrete"
    observations = "any"

    def __init__(self, *, spec, network, optimizer, seed, device, gamma: float, batch_size: int, haste: PositiveFloat):
        self.gamma, self.batch_size = gamma, batch_size
        self.q = network(n_in=spec.obs_shape[0], n_out=spec.num_actions)
        self.optimizer = optimizer(params=self.q.parameters())

    def explore(self, obs, step, first):
        return self.act(obs)

    def act(self, obs):
        return self.q(obs).argmax(-1)

    def update(self, batch, step):
        q = self.q(batch.obs).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
        loss = (q - batch.reward).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"losses/td_loss": loss.detach()}, (q - batch.reward).abs().detach()

    def state_dict(self):
        return {"q": self.q.state_dict()}

    def load_state_dict(self, state):
        self.q.load_state_dict(state["q"])
'''
FILES = {
    "somebodys_rl.py": PACKAGE,
    "conf/algo/greedy.yaml": "_target_: somebodys_rl.Greedy\ngamma: 0.9\nbatch_size: 8\nhaste: 1.0\n",
    "conf/algo/bare.yaml": "_target_: somebodys_rl.Greedy\n",
    "conf/network/affine.yaml": "_target_: somebodys_rl.Affine\nscale: 0.5\n",
    "conf/env/corridor.yaml": "defaults: [default]\nid: Corridor-v0\n",
    # A file of the stranger's own wins over the id of the same name.
    "conf/env/CartPole-v1.yaml": "defaults: [default]\nid: CartPole-v1\nmax_episode_steps: 7\n",
}


@pytest.fixture
def package(tmp_path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return tmp_path


def rl_runner(package: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rl_runner", "--config-dir", "conf", "hydra.run.dir=run", *words]
    return subprocess.run(command, cwd=package, capture_output=True, text=True)


SHORT = ["total_steps=60", "learning_starts=10", "eval_episodes=1", "final_eval_episodes=2", "log_every=20"]


def test_runs_from_the_command_line(package):
    words = ["plugins=[somebodys_rl]", "algo=greedy", "network=affine", "env=corridor", "network.scale=2"]
    ended = rl_runner(package, *words, *SHORT)
    assert ended.returncode == 0, ended.stderr
    result = json.loads((package / "run/result.json").read_text())
    assert result["updates"] == 50
    assert len(result["episode_returns"]) == 2


def test_a_package_beside_the_user_is_found_by_the_script_too(package):
    script = Path(sys.executable).with_name("rl-runner")  # unlike python -m, it does not look where it is started
    by_plugins = ["--config-dir", "conf", "plugins=[somebodys_rl]", "algo=greedy", "env=corridor"]
    for words in (by_plugins, ["env=somebodys_rl:Corridor-v0", "algo=dqn"]):
        ended = subprocess.run([script, *words, "dry_run=true"], cwd=package, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr


def test_its_environment_by_module_and_id(package):
    ended = rl_runner(package, "env=somebodys_rl:Corridor-v0", "algo=dqn", "dry_run=true")
    assert ended.returncode == 0, ended.stderr
    assert "2 discrete actions" in ended.stdout


def test_its_yaml_wins_over_an_id_of_the_same_name(package):
    command = [sys.executable, "-m", "rl_runner", "--cfg", "job", "--config-dir", "conf", "env=CartPole-v1"]
    shown = subprocess.run(command, cwd=package, capture_output=True, text=True).stdout
    assert "max_episode_steps: 7" in shown


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "plugins=[somebodys_rl] algo=greedy env=corridor algo.hast=2",
            "algo.hast: no such key; did you mean algo.haste?",
        ),
        ("plugins=[somebodys_rl] algo=greedy env=corridor algo.haste=0", "algo.haste=0: must be greater than 0"),
        (
            "plugins=[somebodys_rl] algo=bare env=corridor",
            "algo.gamma, algo.batch_size, algo.haste: missing; give them values, or begin the file of this algo with "
            "defaults: [NAME of another]",
        ),
        ("plugins=[somebodys_rl] algo=greedy env=Pendulum-v1", "Greedy needs discrete actions, Pendulum-v1 has"),
        (
            "algo=greedy env=CartPole-v1",
            "algo._target_=somebodys_rl.Greedy: only classes of rl_runner.algos that fit algo, and plugins=[...] may",
        ),
    ],
)
def test_its_mistakes_are_refused_like_ours(package, words, line):
    before = sorted(package.rglob("*"))
    ended = rl_runner(package, *words.split())
    assert ended.returncode == 2
    (told,) = ended.stderr.splitlines()
    assert told.startswith(line)
    assert [path for path in sorted(package.rglob("*")) if "__pycache__" not in str(path)] == before
