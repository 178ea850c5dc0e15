"""What an evaluation plays, and what the learner is given: random actions, cut episodes, clipped rewards."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from killing import rows

from rl_runner.config.schema import EnvConfig, load_config
from rl_runner.evaluate import Evaluator
from rl_runner.persistence import read_json
from rl_runner.run import build
from rl_runner.sweep.jobs import job_hash
from rl_runner.train import train


class Tens(gym.Env):
    """Ten points for action 1, minus ten for action 0; over after `length` steps, or never."""

    observation_space = spaces.Box(0, 10_000, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 0):
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        obs = np.full(1, self.steps, np.float32)
        return obs, 10.0 if action else -10.0, self.steps == self.length, False, {}


gym.register("Tens-v0", Tens)


class One:
    """Always acts 1, and expects one point for each of four steps."""

    def act(self, obs):
        return torch.ones(len(obs), dtype=torch.int64)

    def critique(self, obs, generator):
        left = 4 - obs[:, 0]
        return self.act(obs), (1 - 0.9**left) / (1 - 0.9), torch.zeros(len(obs))


def evaluator(length=4, **keys):
    return Evaluator(EnvConfig(id="Tens-v0", kwargs={"length": length}), 0, 0.9, 10, **keys)


def test_scores_are_unclipped_and_the_bias_is_that_of_what_was_learned():
    metrics, returns = evaluator(clip=1.0)(One(), 10)
    assert returns == [40.0] * 10
    assert metrics["eval/q_bias"] == pytest.approx(0.0, abs=1e-5)
    assert evaluator()(One(), 10)[0]["eval/q_bias"] < -10


def test_evaluation_acts_at_random_as_often_as_told_and_judges_the_critic_without():
    evaluate = evaluator(100, epsilon=0.4, clip=1.0)
    metrics, returns = evaluate(One(), 20)
    assert np.mean(returns) == pytest.approx(1000 * (1 - 0.4), abs=60)  # half of the random actions are right
    assert evaluate(One(), 20)[1] == returns  # the same every time
    assert metrics["eval/q_bias"] == evaluator(100, clip=1.0)(One(), 20)[0]["eval/q_bias"]
    assert set(evaluator(100, epsilon=1.0)(One(), 5)[1]) != {1000.0}


def test_an_endless_episode_is_cut_where_told():
    assert evaluator(0, max_steps=30)(One(), 2)[1] == [300.0, 300.0]
    limited = EnvConfig(id="Tens-v0", max_episode_steps=7)
    assert Evaluator(limited, 0, 0.9, 2, max_steps=30)(One(), 2)[1] == [70.0, 70.0]


WORDS = ["plugins=[test_scores]", "algo=dqn", "env=Tens-v0", "network.hidden=[4]", "algo.batch_size=4", "eval_every=0"]
WORDS += ["total_steps=60", "learning_starts=20", "log_every=20", "env.kwargs.length=4", "final_eval_episodes=2"]


@pytest.mark.parametrize("n_step", [1, 2])
def test_the_learner_alone_gets_clipped_rewards(n_step, configure):
    config = configure(
        *(word for word in WORDS if "kwargs" not in word),
        "+env.kwargs.length=4",
        "clip_rewards=2.5",
        f"replay.n_step={n_step}",
    )
    run, logged = build(config, None), []
    train(run, lambda step: None, lambda step, row, evaluation: logged.append(row), lambda: None)
    assert set(run.replay.ring.columns["reward"][:60].tolist()) == {2.5, -2.5}
    rewards = run.replay.gather(*run.replay.draw(50, 0)).reward.abs()
    assert rewards.max() == pytest.approx(2.5 * (1 if n_step == 1 else 1.99))
    returns = [row["charts/episodic_return"] for row in logged]
    assert all(total % 4 == 0 and abs(total) <= 40 for total in returns)
    assert any(abs(total) > 10 for total in returns)


def test_the_keys_are_said_saved_and_may_change_where_they_only_look(rl_runner, tmp_path):
    keys = ["eval_epsilon=0.25", "eval_max_steps=50", "clip_rewards=1"]
    ended = rl_runner(*WORDS[:-2], "final_eval_episodes=2", *keys, f"hydra.run.dir={tmp_path}")
    assert ended.code == 0, ended.err
    said = " ".join(" ".join(ended.out).split())
    assert "rewards are learned within [-1, 1]" in said
    assert "2 episodes at the end, random actions with probability 0.25" in said
    assert "Tens-v0 has no time limit: evaluation cuts its episodes at 50 steps" in said
    assert read_json(tmp_path / "result.json")["eval/length_mean"] == 50
    again = ["plugins=[test_scores]", "total_steps=80", "eval_max_steps=20", "eval_epsilon=0.0"]
    assert rl_runner("resume", str(tmp_path), *again).code == 0
    assert rows(tmp_path)[-1]["eval/return_mean"] in (200.0, -200.0)
    ended = rl_runner("resume", str(tmp_path), "plugins=[test_scores]", "total_steps=90", "clip_rewards=2")
    assert "clip_rewards is 1.0 there, 2.0 here" in ended.err[0]


def test_what_says_nothing_new_is_left_out_of_files_and_names(configure, rl_runner, tmp_path):
    plain = configure("algo=dqn", "env=CartPole-v1")
    assert not {"eval_epsilon", "eval_max_steps", "clip_rewards"} & plain.model_dump().keys()
    assert job_hash(plain) == job_hash(configure("algo=dqn", "env=CartPole-v1", "eval_max_steps=1000"))
    assert job_hash(plain) != job_hash(configure("algo=dqn", "env=CartPole-v1", "clip_rewards=1"))
    assert rl_runner(*WORDS, f"hydra.run.dir={tmp_path}").code == 0
    config = load_config(tmp_path / "config.yaml", ["plugins=[test_scores]"])
    assert (config.eval_epsilon, config.eval_max_steps, config.clip_rewards) == (0.0, 1_000, None)
    assert rl_runner("resume", str(tmp_path), "plugins=[test_scores]", "total_steps=70").code == 0
