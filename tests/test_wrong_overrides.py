"""300 random wrong command lines: never a traceback, never exit code 0, never a file written."""

import random
import sys

import pytest
from omegaconf import OmegaConf

from rl_runner.__main__ import main
from rl_runner.config.schema import EnvConfig, RunLevel

NUMBERS = ["seed", "total_steps", "num_envs", "eval_episodes", "algo.batch_size", "algo.gamma", "optimizer.lr"]
KEYS = [*RunLevel.model_fields, *(f"env.{name}" for name in EnvConfig.model_fields), "algo.tau", "replay.capacity"]
CHOICES = {
    "algo": [
        "q_learning",
        "dqn",
        "c51",
        "rainbow",
        "ddpg",
        "d4pg",
        "td3",
        "sac",
        "tqc",
        "crossq",
        "xqc",
        "redq",
        "droq",
        "simba",
        "bro_fast",
        "flashsac",
    ],
    "network": ["mlp", "dueling", "residual"],
    "optimizer": ["adam", "adamw", "rmsprop", "sgd"],
    "replay": ["uniform", "prioritized", "last"],
    "env": ["Pendulum-v1", "CartPole-v1", "FrozenLake-v1"],
}
WRONG_TOGETHER = [
    "algo=dqn env=Pendulum-v1",
    "algo=td3 env=CartPole-v1",
    "algo=munchausen env=CartPole-v1 algo.double=true",
    "algo=sac network.noisy=0.5",
    "algo=sac env=CartPole-v1 algo.log_std_min=-3",
    "algo=ddpg env=FrozenLake-v1",
    "algo=q_learning env=CartPole-v1",
    "algo=d4pg tuned=none",
    "algo=tqc value.drop=30",
    "algo=q_learning env=FrozenLake-v1 replay=uniform",
    "algo=sac network=dueling",
    "algo=td3 replay=last",
    "algo=redq algo.target_of=11",
    "algo=crossq algo.batch_size=1",
    "replay.capacity=5 algo.batch_size=6",
    "num_envs=9 algo.batch_size=2 replay.capacity=8",
]


def misspelt(word: str, chance: random.Random) -> str:
    """The word with a letter lost, doubled or replaced."""
    i = chance.randrange(len(word))
    return word[:i] + chance.choice(["", word[i] * 2, "q"]) + word[i + 1 :]


def unknown_key(chance: random.Random) -> str:
    key = chance.choice(KEYS)
    wrong = misspelt(key, chance)
    while wrong in KEYS or wrong.endswith("."):
        wrong = misspelt(key, chance)
    return f"{chance.choice(['', '+', '++', '~'])}{wrong}={chance.randrange(100)}"


def unknown_choice(chance: random.Random) -> str:
    group = chance.choice(list(CHOICES))
    wrong = chance.choice(CHOICES[group])
    while wrong in CHOICES[group] or wrong == "":
        wrong = misspelt(wrong, chance)
    return f"{group}={wrong}"


def wrong_type(chance: random.Random) -> str:
    return f"{chance.choice(NUMBERS)}={chance.choice(['abc', 'true', '[1]', '{a: 1}', 'null', 'nan', 'inf', ''])}"


def out_of_range(chance: random.Random) -> str:
    return chance.choice(
        [
            f"{chance.choice(NUMBERS)}=-{chance.randrange(1, 1000)}",
            f"algo.{chance.choice(['gamma', 'tau'])}={1 + chance.random()}",
            f"{chance.choice(['total_steps', 'updates', 'num_envs'])}={chance.randrange(9)}.5",
            f"{chance.choice(['total_steps', 'update_every', 'threads', 'log_every', 'env.frame_stack'])}=0",
            f"accelerate={chance.choice(['fast', 'on', 'jit'])}",
            f"precision={chance.choice(['low', '16', 'bf16'])}",
            f"device={chance.choice(['gpu', 'cuda:99', 'tpu', '0'])}",
            f"replay.capacity={chance.randrange(10, 99)}e12",
        ]
    )


def wrong_together(chance: random.Random) -> str:
    return chance.choice(WRONG_TOGETHER)


def ungrammatical(chance: random.Random) -> str:
    word = chance.choice(["seed", "algo", "train"])
    return chance.choice(
        [word, f"{word}=[1", f"{word}={{a", f"{word}=choice(1", f"={word}", f"{word}=1,2", f"{word}=${{x"]
    )


def wrong(chance: random.Random) -> list[str]:
    """A command line with one mistake or two, between settings that are right."""
    kinds = [unknown_key, unknown_choice, wrong_type, out_of_range, wrong_together, ungrammatical]
    mistakes = [kind(chance) for kind in chance.sample(kinds, chance.choice([1, 1, 1, 2]))]
    right = chance.choice(["", "seed=3", "log_every=100", "learning_starts=5"])
    sweep = "-m" if chance.random() < 0.1 else ""
    return " ".join([sweep, right, *mistakes]).split()


@pytest.fixture
def quick_yaml(monkeypatch):
    """Parses each YAML file once: composing reads a dozen, hundreds of times here."""
    load, parsed = OmegaConf.load, {}

    def load_once(file):
        key = getattr(file, "name", file)
        if key not in parsed:
            parsed[key] = load(file)
        return parsed[key].copy()

    monkeypatch.setattr(OmegaConf, "load", load_once)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_random_wrong_overrides(seed, tmp_path, monkeypatch, capsys, quick_yaml):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rl-runner"])
    chance = random.Random(seed)
    for _ in range(50):
        words = wrong(chance)
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr().err
        assert code == 2, (words, told)
        assert "Traceback" not in told, (words, told)
        assert 1 <= len(told.splitlines()) <= 9, (words, told)
        assert list(tmp_path.iterdir()) == [], words
