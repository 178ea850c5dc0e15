"""Families of environments: what is composed for an id by itself, and what it says."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rl_runner.config import environment
from rl_runner.config.compose import CONFIGS
from rl_runner.config.schema import EnvConfig
from rl_runner.envs import Envs, make, probe_continuity
from rl_runner.envs.wrappers import ForgetLastAction, OneHotGrid
from rl_runner.header import around


@pytest.mark.parametrize("name", ["atari", "atari_nature"])
def test_atari_is_composed_by_itself_and_by_name(name, configure):
    words = ["algo=dqn", "env=ALE/Pong-v5"]
    config = configure(*words) if name == "atari" else configure(*words, f"preset={name}")
    assert config.chosen["preset"] == name
    (wrapper,) = config.env.wrappers
    assert wrapper["_target_"] == "gymnasium.wrappers.AtariPreprocessing"
    assert (wrapper["noop_max"], wrapper["frame_skip"]) == (0 if name == "atari" else 30, 4)
    sticky = {} if name == "atari" else {"repeat_action_probability": 0.0}
    assert config.env.kwargs == {"frameskip": 1} | sticky
    assert (config.env.frame_stack, config.env.max_episode_steps) == (4, 27_000)
    assert (config.network["hidden"], config.replay["deduplicate"], config.clip_rewards) == ([512], True, 1.0)


def test_none_is_the_environment_as_it_is_and_typed_values_win(configure):
    raw = configure("algo=dqn", "env=ALE/Pong-v5", "preset=none")
    assert raw.env == EnvConfig(id="ALE/Pong-v5")
    assert "preset" not in raw.chosen
    assert raw.replay["capacity"] == 1_000_000
    words = ["env.frame_stack=2", "env.wrappers.0.noop_max=5", "+env.kwargs.mode=1", "network.hidden=[64]"]
    typed = configure("algo=dqn", "env=ALE/Pong-v5", *words)
    assert typed.env.wrappers[0]["noop_max"] == 5
    assert typed.env.kwargs == {"frameskip": 1, "mode": 1}
    assert (typed.env.frame_stack, typed.network["hidden"]) == (2, [64])


def test_minatar_is_composed_by_itself(configure):
    config = configure("algo=dqn", "env=MinAtar/Breakout-v1")
    assert config.env.wrappers == [{"_target_": "rl_runner.envs.wrappers.ForgetLastAction"}]
    assert (config.env.max_episode_steps, config.network["hidden"]) == (5_000, [128])


@pytest.mark.parametrize(
    ("env_id", "preset", "chain"),
    [
        ("ALE/Pong-v5", "atari", "AtariPreprocessing; at most 27,000 steps"),
        ("MinAtar/Breakout-v1", "minatar", "ForgetLastAction; at most 5,000 steps"),
    ],
)
def test_a_preset_is_announced(env_id, preset, chain, configure):
    said, wrappers = around(configure("algo=dqn", f"env={env_id}"))
    assert said.startswith(f"preset {preset} (preset=none switches it off): ")
    assert wrappers == f"wrappers, inner to outer: {chain}"
    assert around(configure("algo=dqn", f"env={env_id}", "preset=none")) == []


def test_the_time_limit_of_atari_counts_the_agents_steps(configure):
    for package in ("ale_py", "cv2"):
        pytest.importorskip(package)
    env = make(configure("algo=dqn", "env=ALE/Pong-v5", "env.max_episode_steps=5").env)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(5)] == [False] * 4 + [True]
    assert env.unwrapped.ale.getEpisodeFrameNumber() == 4 * 5


def test_other_ids_have_none(configure):
    assert "preset" not in configure("algo=dqn", "env=CartPole-v1").chosen
    known = {"ALE/Pong-v5": "atari", "BabyAI-GoTo-v0": "minigrid", "MiniGrid-Empty-5x5-v0": "minigrid", "A/ALE/B": None}
    assert {name: environment.preset_of(name) for name in known} == known


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "preset").glob("*.yaml")))
def test_every_preset_says_what_it_is(name):
    text = (CONFIGS / "preset" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("env=CartPole-v1 preset=nature", "preset=nature: no such preset; did you mean atari_nature?"),
        ("env=CartPole-v1 tuned=none env.id=ALE/Pong-v5",
         "env.id=ALE/Pong-v5: presets go with env=...; write env=ALE/Pong-v5, or add preset=none"),
        ("env=ALE/Pong-v5 preset=none env.id=CartPole-v1 tuned=none", None),
        ("env=CartPole-v1 preset=null", "preset=null: write preset=none"),
        ("env=CartPole-v1 tuned=null", "tuned=null: write tuned=none"),
        ("env=CartPole-v1 network=null", "network=null: choose by name, see --help"),
    ],
)  # fmt: skip
def test_a_preset_that_is_not_composed_is_one_line(words, line, rl_runner):
    ended = rl_runner("algo=dqn", *words.split(), "dry_run=true")
    assert ended.err[:1] == ([line] if line else [])  # more follows where the extra is missing


@pytest.mark.parametrize("prefix", environment.NAMESPACES)
def test_a_missing_extra_is_one_line(prefix, monkeypatch):
    _, extra, preset = environment.NAMESPACES[prefix]
    monkeypatch.setitem(environment.NAMESPACES, prefix, ("not_here.gym", extra, preset))
    line = f"env={prefix}X-v1 needs not_here, which is not installed: pip install 'rl-runner[{extra}]'"
    assert environment.problem(f"{prefix}X-v1") == line


def test_a_missing_package_of_a_wrapper_is_one_line(rl_runner, monkeypatch):
    words = ("plugins=[pixels]", "algo=sac", "env=Dot-v0", "dry_run=true")
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    resized = "env.wrappers=[{_target_: gymnasium.wrappers.ResizeObservation, shape: [8, 8]}]"
    line = "env=Dot-v0 needs opencv, which is not installed: pip install 'rl-runner[atari]'"
    assert rl_runner(*words, resized).err == [line]
    monkeypatch.setattr(environment, "installed", lambda module: False)
    line = "env.wrappers.0: minigrid.wrappers.ImgObsWrapper needs minigrid, which is not installed"
    ended = rl_runner(*words, "env.wrappers=[minigrid.wrappers.ImgObsWrapper]")
    assert ended.err == [f"{line}: pip install 'rl-runner[minigrid]'"]


def test_tuned_values_of_an_id_with_a_slash_are_announced(rl_runner, tmp_path):
    (tmp_path / "tuned/dqn_Pixels").mkdir(parents=True)
    (tmp_path / "tuned/dqn_Pixels/Catch-v0.yaml").write_text("# @package _global_\ntotal_steps: 777\n")
    words = ["--config-dir", str(tmp_path), "plugins=[pixels]", "algo=dqn", "env=Pixels/Catch-v0", "dry_run=true"]
    ended = rl_runner(*words)
    assert "tuned settings from tuned/dqn_Pixels/Catch-v0.yaml (tuned=none switches them off)" in " ".join(
        " ".join(ended.out).split()
    )
    assert any(line.startswith("777 environment steps") for line in ended.out)
    assert not any("tuned" in line for line in rl_runner(*words, "tuned=none").out)


class Sticky(gym.Env):
    """Sometimes repeats the last action, also across reset, as MinAtar does."""

    observation_space = spaces.Box(0, 1, (10, 10, 4), bool)
    action_space = spaces.Discrete(6)

    def __init__(self):
        self.game, self.last_action = self, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((10, 10, 4), bool), {}

    def step(self, action):
        self.last_action = self.last_action if self.np_random.random() < 0.9 else int(action)
        board = np.zeros((10, 10, 4), bool)
        board[self.last_action, 0, 0] = True
        return board, float(self.last_action), False, False, {}


gym.register("Sticky-v0", Sticky, max_episode_steps=60)


def test_a_sticky_action_ends_with_its_episode():
    assert probe_continuity(EnvConfig(id="Sticky-v0"))[0] is True  # a new environment for every episode
    wrapped = EnvConfig(id="Sticky-v0", wrappers=["rl_runner.envs.wrappers.ForgetLastAction"])
    assert probe_continuity(wrapped)[0] is False
    assert isinstance(Envs(wrapped, 1, 0).envs[0].env, ForgetLastAction)


def test_a_grid_of_symbols_becomes_truth_values():
    class Grid(gym.Env):
        observation_space = spaces.Box(0, 255, (7, 7, 3), np.uint8)
        action_space = spaces.Discrete(7)

        def reset(self, *, seed=None, options=None):
            grid = np.zeros((7, 7, 3), np.uint8)
            grid[2, 3] = (10, 5, 3)
            return grid, {}

    env = OneHotGrid(Grid())
    grid, _ = env.reset()
    assert grid in env.observation_space
    assert (grid.shape, grid.dtype) == ((7, 7, 21), bool)
    assert np.flatnonzero(grid[2, 3]).tolist() == [10, 11 + 5, 17 + 3]
    assert np.flatnonzero(grid[0, 0]).tolist() == [0, 11, 17]
    assert (grid.sum(axis=-1) == 3).all()
    with pytest.raises(ValueError, match=r"reads grids \[H, W, 3\]"):
        OneHotGrid(gym.make("CartPole-v1"))


@pytest.mark.parametrize(
    ("env_id", "package", "shape", "exact"),
    [
        ("MinAtar/Breakout-v1", "minatar", (10, 10, 4), True),
        ("MinAtar/Seaquest-v0", "minatar", (10, 10, 10), True),
        ("MiniGrid-Empty-5x5-v0", "minigrid", (7, 7, 21), True),
        ("ALE/Pong-v5", "cv2", (4, 84, 84), True),
    ],
)
def test_the_families_themselves(env_id, package, shape, exact, configure, capfd):
    pytest.importorskip(package)
    config = configure("algo=dqn", f"env={env_id}").env
    rebuild, _ = probe_continuity(config)
    envs = Envs(config, 2, 0)
    assert envs.obs.shape == (2, *shape)
    assert capfd.readouterr() == ("", "")
    assert rebuild is not exact
