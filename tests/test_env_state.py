"""A run killed in the middle of an episode continues to the same bits, or says that it does not."""

import io
import random
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_runner import envs as environments
from rl_runner.config.schema import EnvConfig
from rl_runner.envs import LONGEST, Envs, probe_continuity


class Careless(gym.Env):
    """A random walk; by `flaw` it draws from the global stream ("global") or remembers past episodes ("memory")."""

    action_space = spaces.Box(-1, 1, (2,))
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, flaw=None):
        self.flaw, self.episodes = flaw, 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        self.position = self.np_random.normal(size=2)
        return self.position, {}

    def step(self, action):
        match self.flaw:
            case "global":
                noise = np.random.normal(size=2)
            case "memory":
                noise = np.full(2, 1e-12 * self.episodes)
            case _:
                noise = self.np_random.normal(size=2)
        self.position = self.position + action + noise
        return self.position, float(action[0]), False, False, {}


@pytest.fixture(autouse=True)
def registered():
    gym.register("Careless-v0", Careless)
    gym.register("Endless-v0", Endless)
    yield
    del gym.registry["Careless-v0"], gym.registry["Endless-v0"]


def careless(flaw=None, **kwargs):
    return EnvConfig(id="Careless-v0", kwargs={"flaw": flaw}, **kwargs)


def actions(envs, seed=0):
    stream = torch.Generator().manual_seed(seed)
    while True:
        if envs.spec.num_actions is None:
            yield torch.rand(envs.num_envs, envs.spec.action_dim, generator=stream) * 2 - 1
        else:
            yield torch.randint(envs.spec.num_actions, (envs.num_envs,), generator=stream)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def same(one, other):
    tensors = zip(one[:4], other[:4], strict=True)
    return one.episodes == other.episodes and all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in tensors)


def check_continuation(config, num_envs, kills, after, rebuild=False):
    """Kill after each number of steps; what is resumed must follow the undisturbed past the next resets."""
    undisturbed = Envs(config, num_envs, seed=3, rebuild=rebuild)
    plan = actions(undisturbed)
    for steps in kills:
        for _ in range(steps):
            undisturbed.step(next(plan))
        resumed = Envs(config, num_envs, seed=3, rebuild=rebuild)
        assert resumed.load_state_dict(through_a_file(undisturbed.state_dict())) == []
        assert torch.equal(resumed.obs, undisturbed.obs)
        assert torch.equal(resumed.first, undisturbed.first)
        for _ in range(after):
            action = next(plan)
            assert same(resumed.step(action), undisturbed.step(action))
            assert torch.equal(resumed.obs, undisturbed.obs)
            assert torch.equal(resumed.first, undisturbed.first)
        undisturbed = resumed


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(
    ("env_id", "needs"),
    [
        ("CartPole-v1", None),
        ("Pendulum-v1", None),
        ("Acrobot-v1", None),
        ("FrozenLake-v1", None),
        ("Taxi-v4", None),
        ("LunarLander-v3", "Box2D"),
        ("Hopper-v5", "mujoco"),
        ("HalfCheetah-v5", "mujoco"),
    ],
)
def test_killed_in_the_middle_it_continues_to_the_same_bits(env_id, needs, num_envs):
    if needs:
        pytest.importorskip(needs)
    limit = None if env_id in ("CartPole-v1", "LunarLander-v3", "FrozenLake-v1", "Hopper-v5") else 90
    check_continuation(EnvConfig(id=env_id, max_episode_steps=limit), num_envs, kills=[1, 37, 90, 5], after=150)


def test_an_environment_whose_reset_leaves_traces_continues_when_rebuilt():
    pytest.importorskip("Box2D")
    check_continuation(EnvConfig(id="BipedalWalker-v3"), 2, kills=[150, 20], after=150, rebuild=True)


def test_stacked_frames_continue():
    check_continuation(careless(frame_stack=3, max_episode_steps=20), 2, kills=[1, 13], after=30)


def test_a_long_episode_without_a_time_limit_continues():
    check_continuation(careless(), 2, kills=[2500], after=10)


def test_an_episode_that_does_not_come_back_is_dropped_and_said_so():
    before = Envs(careless("global"), 2, seed=0)
    plan = actions(before)
    for _ in range(5):
        before.step(next(plan))
    after = Envs(careless("global"), 2, seed=0)
    lines = after.load_state_dict(through_a_file(before.state_dict()))
    assert len(lines) == 2
    assert lines[1].startswith("not exact: 5 steps into episode 0, environment 1")
    assert after.first.tolist() == [True, True]
    fresh = Envs(careless("global"), 2, seed=0)
    fresh.reset(episode=1)
    assert torch.equal(after.obs, fresh.obs)


def test_an_episode_that_ends_early_in_replay_is_dropped():
    before = Envs(careless(), 1, seed=0)
    for _ in range(5):
        before.step(torch.zeros(1, 2))
    shorter = Envs(careless(max_episode_steps=3), 1, seed=0)
    assert len(shorter.load_state_dict(before.state_dict())) == 1


def test_only_the_episode_that_fails_is_dropped():
    before = Envs(careless(), 2, seed=0)
    for _ in range(5):
        before.step(torch.zeros(2, 2))
    state = before.state_dict()
    state["return"][0] += 1e-9
    after = Envs(careless(), 2, seed=0)
    assert len(after.load_state_dict(state)) == 1
    assert after.first.tolist() == [True, False]
    assert torch.equal(after.obs[1], before.obs[1])
    assert same_row(after.step(torch.ones(2, 2)), before.step(torch.ones(2, 2)), 1)


def same_row(one, other, i):
    return all(torch.equal(a[i], b[i]) for a, b in zip(one[:4], other[:4], strict=True))


@pytest.mark.parametrize(
    ("flaw", "rebuild", "words"),
    [
        (None, False, "exact continuation by replaying the running episode"),
        ("global", False, "not deterministic"),
        ("memory", True, "exact continuation by replay, in a new environment for every episode"),
    ],
)
def test_probe(flaw, rebuild, words):
    found, said = probe_continuity(careless(flaw))
    assert found == rebuild
    assert said.startswith(words)


def test_probe_finds_box2d_memory_and_trusts_a_rebuilt_one():
    pytest.importorskip("Box2D")
    assert probe_continuity(EnvConfig(id="BipedalWalker-v3"))[0]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_probe_trusts_gymnasium(env_id):
    rebuild, said = probe_continuity(EnvConfig(id=env_id))
    assert not rebuild
    assert said.startswith("exact")


def test_probe_leaves_the_global_streams_alone():
    def draw():
        return random.random(), np.random.random(), torch.rand(1).item()

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = draw()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    environments.examine.cache_clear()
    probe_continuity(careless("global"))
    assert draw() == expected


def test_the_check_before_a_run_and_the_run_make_the_probed_environments_once(monkeypatch):
    made = []

    def counted(self, flaw):
        made.append(self)
        self.flaw, self.episodes = flaw, 0

    monkeypatch.setattr(Careless, "__init__", counted)
    environments.examine.cache_clear()
    assert environments.examine(careless().model_dump_json())[0].obs_shape == (2,)
    assert probe_continuity(careless())[1].startswith("exact")
    assert len(made) == 2


class Endless(gym.Env):
    """Counts for ever; where `every` is given, an episode ends after so many steps."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, every=0):
        self.every, self.obs = every, np.zeros(1, np.float32)

    def reset(self, seed=None, options=None):
        self.obs = np.full(1, seed % 100, np.float32)
        return self.obs, {}

    def step(self, action):
        self.obs = self.obs + 1 + action
        return self.obs, 1.0, bool(self.every) and self.obs[0] > self.every, False, {}


def sizes(envs):
    """The bytes of actions that the environments hold, and of a checkpoint of them."""
    file = io.BytesIO()
    torch.save(envs.state_dict(), file)
    return sys.getsizeof(envs._actions), len(file.getvalue())


@pytest.mark.parametrize("longest", [2_000, pytest.param(LONGEST, marks=pytest.mark.slow)])
def test_memory_and_checkpoints_stay_bounded_in_an_episode_that_never_ends(longest, monkeypatch, capsys):
    monkeypatch.setattr(environments, "LONGEST", longest)
    envs = Envs(EnvConfig(id="Endless-v0"), 1, seed=0)
    action = torch.zeros(1, dtype=torch.int64)
    for step in range(1, 5 * longest + 1):
        envs.step(action)
        if step % longest == 0 or step == longest + 1:
            held, saved = sizes(envs)
            assert held <= 8 * 2 * (longest + 10)
            assert saved < (8 * longest if step <= longest else 0) + 4_000
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"Endless-v0, environment 0, episode 0, step {longest + 1}: a longer episode cannot be")
    resumed = Envs(EnvConfig(id="Endless-v0"), 1, seed=0)
    assert resumed.load_state_dict(through_a_file(envs.state_dict())) == [
        f"not exact: {5 * longest} steps into episode 0, environment 0 had played more than the {longest:,} that are "
        "kept; episode 1 begins instead"
    ]
    assert resumed.first.tolist() == [True]
    check_same_future(envs_at_the_next_episode(), resumed)


def envs_at_the_next_episode():
    fresh = Envs(EnvConfig(id="Endless-v0"), 1, seed=0)
    fresh.reset(episode=1)
    return fresh


def check_same_future(one, other):
    action = torch.ones(one.num_envs, dtype=torch.int64)
    assert all(same(one.step(action), other.step(action)) for _ in range(5))


def test_an_episode_that_never_ends_costs_the_others_nothing(monkeypatch, capsys):
    monkeypatch.setattr(environments, "LONGEST", 300)
    config = EnvConfig(id="Endless-v0")
    envs = Envs(config, 2, seed=0)
    envs._seeded[1].env.unwrapped.every = 220
    action = torch.zeros(2, dtype=torch.int64)
    for step in range(1, 6001):
        envs.step(action)
        needed = envs._seeded[1].length
        assert len(envs.state_dict()["actions"]) == (max(step, needed) if step <= 300 else needed)
        assert sys.getsizeof(envs._actions) <= 2048 * 16
    assert [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "Endless-v0, environment 0, episode 0, step 301"
    ]
    resumed = Envs(config, 2, seed=0)
    resumed._seeded[1].env.unwrapped.every = 220
    (line,) = resumed.load_state_dict(through_a_file(envs.state_dict()))
    assert line.startswith("not exact: 6000 steps into episode 0, environment 0 had played more than")
    assert resumed.first.tolist() == [True, False]
    assert torch.equal(resumed.obs[1], envs.obs[1])
    for _ in range(5):
        assert same_row(resumed.step(action), envs.step(action), 1)
    again = Envs(config, 2, seed=0)
    again._seeded[1].env.unwrapped.every = 220
    assert again.load_state_dict(through_a_file(resumed.state_dict())) == []


def test_an_episode_of_just_the_longest_length_continues(monkeypatch):
    monkeypatch.setattr(environments, "LONGEST", 300)
    check_continuation(EnvConfig(id="Endless-v0"), 1, kills=[300], after=0)
