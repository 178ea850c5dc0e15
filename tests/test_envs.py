"""Environments as the agent sees them: every transition the true one, actions within bounds, refusals clear."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rl_runner.config import environment
from rl_runner.config.schema import EnvConfig
from rl_runner.envs import Envs, make, spec_of
from rl_runner.envs.spaces import action_map
from rl_runner.errors import RunFailed, UserError
from rl_runner.seeding import derive


class Counter(gym.Env):
    """Observes (seed, steps so far) in one reused float64 buffer; pays its step number; ends at `length`."""

    action_space = spaces.Discrete(3, start=5)
    observation_space = spaces.Box(0, 2**32, (2,), np.float64)

    def __init__(self, length=4, end=(True, False), broken=None):
        self.length, self.end, self.broken = length, end, broken
        self.buffer = np.zeros(2)

    def reset(self, seed=None, options=None):
        if self.broken == "reset":
            raise ValueError("no\nreset")
        self.buffer[:] = seed % 1000, 0
        return (self.buffer[:1] if self.broken == "shape" else self.buffer), {}

    def step(self, action):
        assert action in self.action_space
        self.buffer[1] += 1
        count = self.buffer[1]
        if count == 2 and isinstance(self.broken, float):
            self.buffer[0] = self.broken
        if count == 2 and self.broken == "step":
            raise ZeroDivisionError("the wheel came off")
        reward = {"nan reward": np.nan, "huge reward": 1e39}.get(self.broken, count) if count == 2 else count
        over = count == self.length
        return self.buffer, reward, over and self.end[0], over and self.end[1], {}


class Shaped(gym.Env):
    """Declares whatever spaces it is given and observes samples of them."""

    def __init__(self, observation=None, action=None):
        self.observation_space = observation or spaces.Box(-1, 1, (3,))
        self.action_space = action or spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.fixture(autouse=True)
def registered():
    gym.register("Counter-v0", Counter)
    gym.register("Shaped-v0", Shaped)
    yield
    for env_id in ("Counter-v0", "Shaped-v0"):
        del gym.registry[env_id]


def counter(num_envs=1, seed=0, limit=None, name="train", auto_reset=True, frame_stack=1, **kwargs):
    config = EnvConfig(id="Counter-v0", kwargs=kwargs, max_episode_steps=limit, frame_stack=frame_stack)
    return Envs(config, num_envs, seed, name, auto_reset=auto_reset)


def shaped(**kwargs):
    return make(EnvConfig(id="Shaped-v0", kwargs=kwargs))


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(
    ("end", "limit", "terminates"),
    [((True, False), None, True), ((False, False), 4, False), ((True, True), None, True)],
)
def test_every_transition_is_the_true_one(num_envs, end, limit, terminates):
    envs = counter(num_envs, seed=7, limit=limit, end=end)
    transitions = []
    for _ in range(9):
        obs, first = envs.obs, envs.first
        transitions.append((obs, first, envs.step(torch.zeros(num_envs, dtype=torch.int64))))
    for t, (obs, first, step) in enumerate(transitions):  # only now, so that a reused buffer would show
        episode, count = divmod(t, 4)
        seeds = torch.tensor([derive(7, "train", i, episode) % 1000 for i in range(num_envs)])
        over = torch.full((num_envs,), count == 3)
        assert torch.equal(obs, torch.stack([seeds, torch.full_like(seeds, count)], dim=1).float())
        assert torch.equal(step.next_obs, torch.stack([seeds, torch.full_like(seeds, count + 1)], dim=1).float())
        assert torch.equal(first, torch.full((num_envs,), count == 0))
        assert torch.equal(step.terminated, over & terminates)
        assert torch.equal(step.truncated, over & (not terminates))
        assert torch.equal(step.reward, torch.full((num_envs,), count + 1.0))
        assert step.episodes == [(10.0, 4)] * num_envs * (count == 3)


def test_environments_end_their_episodes_independently():
    envs = counter(2)
    envs._seeded[1].env.unwrapped.length = 2
    ended = [len(envs.step(torch.zeros(2, dtype=torch.int64)).episodes) for _ in range(4)]
    assert ended == [0, 1, 0, 2]
    assert envs.first.tolist() == [True, True]
    envs.step(torch.zeros(2, dtype=torch.int64))
    step = envs.step(torch.zeros(2, dtype=torch.int64))
    assert step.terminated.tolist() == [False, True]
    assert envs.first.tolist() == [False, True]
    assert step.next_obs[:, 1].tolist() == [2, 2]
    assert envs.obs[:, 1].tolist() == [2, 0]


def test_streams_of_another_seed_name_or_copy_differ():
    firsts = {float(counter(seed=seed, name=name).obs[0, 0]) for seed in (0, 1) for name in ("train", "eval")}
    firsts |= {float(counter(2).obs[1, 0])}
    assert len(firsts) == 5


def test_without_auto_reset_each_plays_one_episode_and_reset_repeats_it():
    envs = counter(2, auto_reset=False)
    envs._seeded[1].env.unwrapped.length = 2
    begin = envs.obs.clone()
    steps = [envs.step(torch.zeros(2, dtype=torch.int64)) for _ in range(4)]
    assert [step.terminated.tolist() for step in steps] == [
        [False, False],
        [False, True],
        [False, False],
        [True, False],
    ]
    assert [step.reward[1].item() for step in steps] == [1, 2, 0, 0]
    assert steps[3].next_obs[:, 1].tolist() == [4, 2]
    assert [step.episodes for step in steps] == [[], [(3.0, 2)], [], [(10.0, 4)]]
    assert envs.active.tolist() == [False, False]
    envs.reset()
    assert torch.equal(envs.obs, begin)
    assert envs.active.tolist() == [True, True]


def test_frames_are_stacked_oldest_first_and_padded_with_the_first():
    envs = counter(frame_stack=3)
    assert envs.spec.obs_shape == (3, 2)
    assert envs.obs[0, :, 1].tolist() == [0, 0, 0]
    for _ in range(2):
        envs.step(torch.zeros(1, dtype=torch.int64))
    assert envs.obs[0, :, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("space", "shape", "dtype", "num_states"),
    [
        (spaces.Box(-1, 1, (2, 3), np.float64), (2, 3), torch.float32, None),
        (spaces.Box(0, 255, (4, 4), np.uint8), (4, 4), torch.uint8, None),
        (spaces.Box(0, 9, (2,), np.int32), (2,), torch.float32, None),
        (spaces.Discrete(4, start=-2), (), torch.int64, 4),
        (spaces.MultiBinary(5), (5,), torch.float32, None),
        (spaces.MultiDiscrete([2, 3]), (5,), torch.float32, None),
        (spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2, 2))}), (7,), torch.float32, None),
        (spaces.Tuple((spaces.Box(-1, 1, (1,)), spaces.MultiBinary(2))), (3,), torch.float32, None),
    ],
)
def test_observation_spaces(space, shape, dtype, num_states):
    envs = Envs(EnvConfig(id="Shaped-v0", kwargs={"observation": space}), 2, seed=0)
    assert (envs.spec.obs_shape, envs.spec.obs_dtype, envs.spec.num_states) == (shape, dtype, num_states)
    seen = [envs.obs, *(envs.step(torch.zeros(2, dtype=torch.int64)).next_obs for _ in range(30))]
    assert all(obs.shape == (2, *shape) and obs.dtype == dtype for obs in seen)
    if num_states:
        assert set(torch.cat(seen).tolist()) == set(range(num_states))


def test_flattened_observation_keeps_its_values():
    space = spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2, 2))})
    envs = Envs(EnvConfig(id="Shaped-v0", kwargs={"observation": space}), 1, seed=3)
    space.seed(derive(3, "train", 0, 0))
    sample = space.sample()
    expected = np.concatenate([np.eye(3)[sample["a"]], sample["b"].ravel()])
    np.testing.assert_array_equal(envs.obs[0].numpy(), expected.astype(np.float32))


def test_actions_map_onto_the_bounds():
    low, high = np.array([[-2, 0], [0.1, -7]], np.float32), np.array([[2, 1], [0.3, -3]], np.float32)
    to_env = action_map(spaces.Box(low, high, dtype=np.float32))
    actions = np.array([[-1] * 4, [1] * 4, [0] * 4, [-9, 9, 0.5, -0.5]], np.float32)
    mapped = to_env(actions)
    assert mapped.dtype == np.float32
    np.testing.assert_array_equal(mapped[0], low)
    np.testing.assert_array_equal(mapped[1], high)
    np.testing.assert_allclose(mapped[2], [[0, 0.5], [0.2, -5]], rtol=1e-6)
    np.testing.assert_allclose(mapped[3], [[-2, 1], [0.25, -6]], rtol=1e-6)


def test_rounding_cannot_leave_the_bounds():
    rng = np.random.default_rng(0)
    low = rng.normal(size=1000)
    box = spaces.Box(low, low + rng.exponential(size=1000), dtype=np.float64)
    assert box.contains(action_map(box)(np.ones((1, 1000), np.float32))[0])
    assert box.contains(action_map(box)(-np.ones((1, 1000), np.float32))[0])


def test_symmetric_unit_bounds_leave_actions_as_they_are():
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    np.testing.assert_array_equal(action_map(spaces.Box(-1, 1, (3,)))(actions), actions)


def test_integer_and_shifted_actions():
    whole = action_map(spaces.Box(0, 10, (1,), np.uint8))(np.array([[-1], [-0.72], [1]], np.float32))
    assert whole.dtype == np.uint8
    assert whole.ravel().tolist() == [0, 1, 10]
    assert action_map(spaces.Discrete(3, start=-1))(np.array([0, 2])).tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("space", "count", "second", "last"),
    [
        (spaces.MultiDiscrete([2, 3]), 6, [0, 1], [1, 2]),
        (spaces.MultiDiscrete([3, 2], start=[-1, 4]), 6, [-1, 5], [1, 5]),
        (spaces.MultiDiscrete(np.array([[2, 2], [1, 3]])), 12, [[0, 0], [0, 1]], [[1, 1], [0, 2]]),
        (spaces.MultiDiscrete([5]), 5, [1], [4]),
        (spaces.MultiDiscrete([100, 100]), 10_000, [0, 1], [99, 99]),
        (spaces.MultiBinary(3), 8, [0, 0, 1], [1, 1, 1]),
        (spaces.MultiBinary((2, 2)), 16, [[0, 0], [0, 1]], [[1, 1], [1, 1]]),
    ],
)
def test_every_combination_of_choices_has_one_number(space, count, second, last):
    class Chosen(gym.Env):
        observation_space, action_space = spaces.Box(0, 1, (1,)), space

    assert spec_of(Chosen()).num_actions == count
    actions = action_map(space)(np.arange(count))
    assert (actions[1].tolist(), actions[-1].tolist()) == (second, last)
    assert len({action.tobytes() for action in actions}) == count
    assert all(space.contains(action) for action in actions)


@pytest.mark.parametrize(
    ("action", "complaint"),
    [
        (spaces.Box(-np.inf, 1, (2,)), "unbounded"),
        (spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (2,)), "unbounded"),
        (
            spaces.MultiDiscrete([73, 137]),
            "MultiDiscrete of 10,001 combinations, and up to 10,000 are numbered: offer fewer",
        ),
        (spaces.Dict({"a": spaces.Discrete(2)}), "Dict"),
    ],
)
def test_unsupported_actions_are_refused_in_one_line(action, complaint):
    with pytest.raises(UserError, match=f"Shaped-v0.*{complaint}") as refusal:
        spec_of(shaped(action=action))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"id": "Nowhere-v0"}, "Nowhere-v0"),
        ({"id": "CartPole-v1", "kwargs": {"gravitas": 3}}, "gravitas"),
        ({"id": "no_such_package:Foo-v0"}, "no_such_package"),
        ({"id": "FrozenLake-v1", "frame_stack": 4}, "frame_stack=4"),
        ({"id": "Shaped-v0", "kwargs": {"observation": spaces.Sequence(spaces.Discrete(2))}}, "Sequence"),
    ],
)
def test_environments_that_cannot_be_made_are_refused_in_one_line(config, complaint):
    with pytest.raises(UserError, match=complaint) as refusal:
        make(EnvConfig(**config))
    assert "\n" not in str(refusal.value)


def test_missing_package_of_a_namespace_names_the_extra(monkeypatch):
    monkeypatch.setitem(environment.NAMESPACES, "ALE/", ("ale_py_that_is_not_here", "atari", "atari"))
    with pytest.raises(UserError, match=r"rl-runner\[atari\]"):
        make(EnvConfig(id="ALE/Pong-v5"))


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ("nan reward", "gave the reward nan"),
        ("huge reward", "gave the reward 1e"),
        (float("nan"), "NaN in an observation"),
        (float("-inf"), "infinity in an observation"),
        ("step", r"raised ZeroDivisionError: the wheel came off in step\(\)"),
    ],
)
def test_a_broken_environment_is_named_with_the_step(broken, complaint):
    envs = counter(broken=broken)
    envs.step(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(RunFailed, match=complaint) as failure:
        envs.step(torch.zeros(1, dtype=torch.int64))
    assert "Counter-v0, environment 0, episode 0, step 2" in str(failure.value)
    assert isinstance(failure.value.__cause__, ZeroDivisionError) == (broken == "step")


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [("reset", r"raised ValueError: no reset in reset\(\)"), ("shape", r"\(1,\) instead of \(2,\)")],
)
def test_a_reset_that_fails_is_named(broken, complaint):
    with pytest.raises(RunFailed, match=complaint):
        counter(broken=broken)


def test_large_finite_observations_pass():
    envs = counter(broken=3e38)
    for _ in range(2):
        envs.step(torch.zeros(1, dtype=torch.int64))
    assert envs.obs[0, 0] == np.float32(3e38)


def test_the_culprit_is_the_copy_that_broke():
    envs = counter(3)
    envs._seeded[1].env.unwrapped.broken = float("nan")
    envs.step(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(RunFailed, match="environment 1"):
        envs.step(torch.zeros(3, dtype=torch.int64))


def test_spec_of_known_environments():
    pendulum = spec_of(make(EnvConfig(id="Pendulum-v1")))
    assert (pendulum.obs_shape, pendulum.action_dim, pendulum.num_actions) == ((3,), 1, None)
    assert pendulum.max_episode_steps == 200
    lake = spec_of(make(EnvConfig(id="FrozenLake-v1", max_episode_steps=30)))
    assert (lake.obs_shape, lake.num_states, lake.num_actions, lake.max_episode_steps) == ((), 16, 4, 30)
    assert spec_of(make(EnvConfig(id="CliffWalking-v1"))).max_episode_steps is None


def test_making_an_environment_is_silent_and_leaves_no_file(monkeypatch, tmp_path, capfd):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    make(EnvConfig(id="HalfCheetah-v5"))
    make(EnvConfig(id="CartPole-v0"))
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
