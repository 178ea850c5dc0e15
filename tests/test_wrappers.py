"""What stands around an environment: its order, what may be named, and that everything opens the same chain."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from killing import rows
from test_env_state import check_continuation

from rl_runner.config.schema import EnvConfig, load_config
from rl_runner.envs import Envs, make, probe_continuity
from rl_runner.errors import UserError
from rl_runner.evaluate import Evaluator
from rl_runner.persistence import read_json
from rl_runner.seeding import derive

GYM = "gymnasium.wrappers"


class Counting(gym.Env):
    """Observes how many steps were made in all, and the last action."""

    observation_space = spaces.Box(0, 1_000, (2,), np.float32)
    action_space = spaces.Discrete(5, start=0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.steps, action], np.float32), 1.0, False, False, {}


class Plus(gym.ObservationWrapper):
    """Adds to what is seen."""

    def __init__(self, env, addend: float = 1.0):
        super().__init__(env)
        self.addend = addend

    def observation(self, observation):
        return observation + np.float32(self.addend)


class Twice(gym.ObservationWrapper):
    """Doubles what is seen."""

    def observation(self, observation):
        return 2 * observation


class Inside(gym.Wrapper):
    """Holds an environment that learns, out of sight."""

    def __init__(self, env):
        super().__init__(env)
        self.parts = {"hidden": gym.wrappers.NormalizeObservation(env)}


gym.register("Counting-v0", Counting, max_episode_steps=8)


def around(*wrappers, **keys):
    return EnvConfig(id="Counting-v0", wrappers=list(wrappers), **keys)


@pytest.mark.parametrize("bounds", ["min_obs: -1, max_obs: 1", "min_obs: [-1, -1], max_obs: [1.0, 1.0]"])
def test_numbers_and_lists_stand_for_arrays(bounds, rl_runner):
    """As the refusals of wrappers with running statistics advise."""
    wrapper = f"env.wrappers=[{{_target_: {GYM}.RescaleObservation, {bounds}}}]"
    words = ("algo=dqn", "env=MountainCar-v0", "tuned=none", "total_steps=20", "final_eval_episodes=1", wrapper)
    ended = rl_runner(*words, "hydra.run.dir=run")
    assert (ended.code, ended.err) == (0, [])
    assert any("wrappers, inner to outer: RescaleObservation" in line for line in ended.out)
    assert rl_runner("eval", "run", "--episodes", "1").code == 0


def test_a_list_stands_for_a_tuple():
    """Which Gymnasium asks for by name, as of ResizeObservation."""
    reshaped = {"_target_": f"{GYM}.ReshapeObservation", "shape": [2, 1]}
    assert Envs(around(reshaped), 1, seed=0).spec.obs_shape == (2, 1)


REPEAT = {"_target_": f"{GYM}.RepeatAction", "num_repeats": 3}


def test_wrappers_apply_from_the_inner_to_the_outer():
    plus, twice = {"_target_": f"{__name__}.Plus", "addend": 3.0}, f"{__name__}.Twice"
    for wrappers, want in (([plus, twice], 6.0), ([twice, plus], 3.0), ([twice, twice, plus], 3.0)):
        env = make(around(*wrappers))
        assert env.reset(seed=0)[0].tolist() == [want, want]
        assert env.step(0)[0][0] == {6.0: 8.0, 3.0: 5.0 if len(wrappers) == 2 else 7.0}[want]


@pytest.mark.parametrize("limit", [None, 5])
def test_the_time_limit_is_outermost_and_counts_the_agents_steps(limit):
    env = make(around(REPEAT, max_episode_steps=limit))
    env.reset(seed=0)
    for step in range(1, (limit or 8) + 1):
        obs, reward, terminated, truncated, _ = env.step(1)
        assert obs.tolist() == [3 * step, 1]
        assert reward == 3
        assert not terminated
        assert truncated == (step == (limit or 8))
    assert Envs(around(REPEAT, max_episode_steps=limit), 1, seed=0).spec.max_episode_steps == (limit or 8)


def test_evaluation_is_of_the_same_chain():
    evaluator = Evaluator(around(REPEAT, frame_stack=2), seed=0, gamma=0.9, episodes=2)
    assert evaluator.limit == 8
    assert [type(each).__name__ for each in (evaluator.envs.envs[0], evaluator.envs.envs[0].env)] == [
        "TimeLimit",
        "RepeatAction",
    ]
    frozen = EnvConfig(id="FrozenLake-v1", wrappers=[f"{GYM}.OrderEnforcing"])
    assert Evaluator(frozen, 0, 0.9, 1).model is None  # a wrapper may change what the tables say
    assert Evaluator(EnvConfig(id="FrozenLake-v1"), 0, 0.9, 1).model is not None


class Several(gym.Env):
    """Observes an image, two numbers, a state and a word."""

    observation_space = spaces.Dict(
        {
            "view": spaces.Box(0, 255, (8, 8, 3), np.uint8),
            "speed": spaces.Box(-9, 9, (2,)),
            "gear": spaces.Discrete(4),
            "word": spaces.Text(5),
        }
    )
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {"view": np.zeros((8, 8, 3), np.uint8), "speed": np.ones(2, np.float32), "gear": 2, "word": "go"}, {}

    def step(self, action):
        return self.reset()[0], 0.0, False, False, {}


gym.register("Several-v0", Several, max_episode_steps=5)


@pytest.mark.parametrize(
    ("keys", "seen", "dtype"),
    [
        (["view"], np.zeros((8, 8, 3)), np.uint8),
        (["speed"], [1, 1], np.float32),
        (["gear"], 2, np.int64),
        (["gear", "speed"], [0, 0, 1, 0, 1, 1], np.float32),
        (["speed", "gear"], [0, 0, 1, 0, 1, 1], np.float32),  # in the order of the Dict, which sorts its keys
    ],
)
def test_parts_of_a_dict_are_chosen(keys, seen, dtype):
    envs = Envs(EnvConfig(id="Several-v0", observation_keys=keys), 1, seed=0)
    assert envs.obs[0].numpy().dtype == dtype
    assert np.array_equal(envs.obs[0].numpy(), seen)
    assert envs.spec.max_episode_steps == 5


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("env.observation_keys=[veiw]", "env.observation_keys: no veiw is observed; did you mean view?"),
        ("env.observation_keys=[gear,zzz]",
         "env.observation_keys: no zzz is observed; there are gear, speed, view, word"),
        ("env=CartPole-v1 env.observation_keys=[x]",
         "env.observation_keys: no x is observed; there is no Dict: leave it out"),
        ("env.observation_keys=view", "env.observation_keys=view: must be a valid list"),
    ],
)  # fmt: skip
def test_parts_that_cannot_be_chosen_are_one_line(words, line, rl_runner):
    ended = rl_runner(
        "algo=dqn", "plugins=[test_wrappers]", "tuned=none", "env=Several-v0", *words.split(), "dry_run=true"
    )
    assert (ended.code, len(ended.err)) == (2, 1)
    assert ended.err[0].startswith(line)


def test_gymnasiums_own_stack_is_what_a_policy_takes():
    """As README shows for an exported policy."""
    envs = Envs(EnvConfig(id="CartPole-v1", frame_stack=3), 1, seed=0)
    theirs = gym.wrappers.FrameStackObservation(gym.make("CartPole-v1"), 3)
    obs, _ = theirs.reset(seed=derive(0, "train", 0, 0))
    for _ in range(5):
        assert np.array_equal(envs.obs[0].numpy(), obs)
        envs.step(torch.tensor([1]))
        obs = theirs.step(1)[0]


STICKY = {"_target_": f"{GYM}.StickyAction", "repeat_action_probability": 0.4}
SKIPPING = {"_target_": f"{GYM}.MaxAndSkipObservation", "skip": 2}


def test_the_states_of_wrappers_continue():
    config = EnvConfig(id="CartPole-v1", wrappers=[STICKY, SKIPPING, f"{GYM}.TimeAwareObservation"], frame_stack=3)
    assert probe_continuity(config)[0] is False
    check_continuation(config, 2, kills=[1, 13, 4], after=30)


def test_a_run_goes_on_in_the_middle_of_an_episode_and_keeps_its_wrappers(rl_runner, tmp_path):
    words = ["algo=dqn", "env=CartPole-v1", "tuned=none", "network.hidden=[8]", "algo.batch_size=8", "log_every=40"]
    words += ["env.frame_stack=2", "replay.deduplicate=true", "replay.capacity=100", "eval_every=0", "updates=1"]
    words += ["learning_starts=20", "final_eval_episodes=2", "algo.epsilon_schedule=multiplicative"]
    words += [f"env.wrappers=[{{_target_: {GYM}.StickyAction, repeat_action_probability: 0.4}},{GYM}.OrderEnforcing]"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ended = rl_runner(*words, "total_steps=160", f"hydra.run.dir={whole}")
    assert ended.code == 0, ended.err
    assert "wrappers, inner to outer: StickyAction, OrderEnforcing" in ended.out
    assert rl_runner(*words, "total_steps=93", f"hydra.run.dir={parts}").code == 0
    assert rl_runner("resume", str(parts), "total_steps=160").code == 0
    one, other = (read_json(place / "result.json") for place in (whole, parts))
    assert one["params_sha256"] == other["params_sha256"]
    assert one["episode_returns"] == other["episode_returns"]
    assert rows(whole)[-1] == rows(parts)[-1]
    assert load_config(parts / "config.yaml").env.wrappers[0] == STICKY
    assert rl_runner("eval", str(parts)).code == 0
    said = "obs: the last 2 observations, oldest first, behind StickyAction, OrderEnforcing"
    assert said in rl_runner("export", str(parts)).out
    ended = rl_runner("resume", str(parts), "total_steps=200", "env.wrappers=[]")
    assert ended.code == 2
    assert "env.wrappers is" in ended.err[0]


@pytest.mark.parametrize(
    ("wrapper", "line"),
    [
        (f"{GYM}.TimeLimit", "write env.max_episode_steps=N, which counts the agent's steps"),
        (f"{GYM}.FrameStackObservation", "write env.frame_stack=K"),
        (f"{GYM}.NormalizeObservation", "are lost by checkpoints: write normalize_observations=true"),
        (f"{GYM}.NormalizeReward", "lost by checkpoints: write normalize_rewards=5"),
        (f"{GYM}.RecordVideo", "rl-runner eval DIR --video"),
        (f"{GYM}.HumanRendering", "rl-runner eval DIR --video"),
        (f"{GYM}.Autoreset", "leave it out, the runner resets"),
        (f"{GYM}.ClipReward", "write clip_rewards=1, by which returns and evaluation stay the environment's own"),
        (f"{GYM}.TransformReward", "write clip_rewards=1 or normalize_rewards=5, or name a wrapper of yours"),
        (f"{GYM}.TransformObservation", "which no config can hold: name a wrapper of yours from a plug-in"),
        (f"{GYM}.vector.RescaleAction", "name the wrapper of one, in gymnasium.wrappers"),
        (f"{{_target_: {GYM}.AtariPreprocessing, terminal_on_life_loss: true}}",
         "terminal_on_life_loss=true starts a new game at every life, hiding later ones: leave it out"),
        (f"{{_target_: {GYM}.RepeatAction, num_repeats: 2, odds: 1}}", "env.wrappers.0.odds: no such key"),
        (f"{{_target_: {GYM}.RepeatAction, num_repeats: x}}", "env.wrappers.0.num_repeats=x: must be"),
        (f"{GYM}.RepeatAction", "env.wrappers.0.num_repeats: missing"),
        (f"{GYM}.Sticky", "there is no such class"),
        ("os.system", "only classes of gymnasium.wrappers"),
        (f"{GYM}.os.system", "there is no such class"),
        (f"{GYM}.common.deepcopy", "only classes of gymnasium.wrappers"),
        ("test_wrappers.Plus", "only classes of gymnasium.wrappers"),
        ("gymnasium.Env", "only classes of gymnasium.wrappers"),
        ("3", "env.wrappers=3: must be a valid dictionary"),
    ],
)  # fmt: skip
def test_what_may_not_stand_around_an_environment_is_one_line(wrapper, line, rl_runner):
    ended = rl_runner("algo=dqn", "env=CartPole-v1", "tuned=none", f"env.wrappers=[{wrapper}]", "dry_run=true")
    assert ended.code == 2
    assert line in ended.err[0]
    assert len(ended.err) == 1


def test_what_is_no_list_is_one_line(rl_runner):
    ended = rl_runner("algo=dqn", "env=CartPole-v1", "env.wrappers=RepeatAction", "dry_run=true")
    assert (ended.code, ended.err) == (2, ["env.wrappers=RepeatAction: must be a valid list"])


def test_statistics_are_found_wherever_they_hide():
    with pytest.raises(UserError, match="normalises by running statistics"):
        make(around(f"{__name__}.Inside"))


def test_a_stranger_names_no_wrapper_of_another_package(rl_runner, tmp_path):
    words = ["algo=dqn", "env=CartPole-v1", "tuned=none", "total_steps=4", "learning_starts=4", "final_eval_episodes=1"]
    assert rl_runner(*words, f"hydra.run.dir={tmp_path}").code == 0
    file = tmp_path / "config.yaml"
    text = file.read_text()
    assert "wrappers" not in text  # so that sweeps from before keep the names of their jobs
    file.write_text(
        text.replace("  frame_stack: 1\n", "  frame_stack: 1\n  wrappers: [{_target_: trap_package.Trap}]\n")
    )
    ended = rl_runner("eval", str(tmp_path))
    assert ended.code == 2
    assert "env.wrappers.0._target_=trap_package.Trap: only classes of gymnasium.wrappers" in ended.err[0]
