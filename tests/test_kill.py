"""A run that is killed again and again ends with the same bits as one that was left alone."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from killing import DISCRETE_SAC, assert_same, run_to_the_end, run_with_kills

from rl_runner.config.schema import Config
from rl_runner.persistence import METRICS

KILLS = 5
TINY = (
    "tuned=none", "learning_starts=60", "total_steps=600", "checkpoint_every=30", "log_every=60", "eval_every=240",
    "eval_episodes=2", "final_eval_episodes=3", "update_every=2",
)  # fmt: skip
DEEP = ("network.hidden=[16]", "algo.batch_size=8", "algo.gamma=0.9", "replay.capacity=250")
BLOCKS = ("actor_network.width=8", "critic_network.width=8", "critic_network.blocks=1", *DEEP[1:])
PRIORITIZED = ("replay=prioritized", "replay.n_step=3", "replay.deduplicate=true")

NORMALIZED = ("normalize_observations=true", "normalize_rewards=5", "env.max_episode_steps=70")
STICKY = (
    "env.wrappers=[{_target_: gymnasium.wrappers.StickyAction, repeat_action_probability: 0.4}]", "env.frame_stack=2",
    "encoder=minatar_cnn", "plugins=[pixels]",
)  # fmt: skip
BOUNDS = ("value.v_min=-100", "value.v_max=0")

FAST = {
    "q_learning-FrozenLake-1": ("algo=q_learning", "env=FrozenLake-v1", "num_envs=1"),
    "dqn-CartPole-3": ("algo=dqn", "env=CartPole-v1", "num_envs=3", *PRIORITIZED, *DEEP),
    "ddqn-LunarLander-1": ("algo=ddqn", "env=LunarLander-v3", "num_envs=1", "algo.target_every=100", *DEEP),
    "ddpg-Pendulum-3": ("algo=ddpg", "env=Pendulum-v1", "num_envs=3", "algo.noise=ou", *DEEP),
    "td3-Hopper-1": ("algo=td3", "env=Hopper-v5", "num_envs=1", "env.frame_stack=2", *PRIORITIZED, *DEEP),
    "c51-CartPole-3": ("algo=c51", "env=CartPole-v1", "num_envs=3", "network=dueling", *PRIORITIZED, *DEEP),
    "d4pg-Pendulum-1": ("algo=d4pg", "env=Pendulum-v1", "num_envs=1", *BOUNDS, *DEEP),
    "tqc-Pendulum-3": ("algo=tqc", "env=Pendulum-v1", "num_envs=3", *PRIORITIZED, *DEEP),
    "rainbow-CartPole-3": ("algo=rainbow", "env=CartPole-v1", "num_envs=3", *DEEP),
    "discrete_sac-CartPole-1": ("algo=sac", "env=CartPole-v1", "num_envs=1", *DISCRETE_SAC, *PRIORITIZED, *DEEP),
    "sac-Pendulum-normalized-3": ("algo=sac", "env=Pendulum-v1", "num_envs=3", *NORMALIZED, *DEEP),
    "crossq-Pendulum-3": ("algo=crossq", "env=Pendulum-v1", "num_envs=3", *PRIORITIZED, *DEEP),
    "droq-Pendulum-1": ("algo=droq", "env=Pendulum-v1", "num_envs=1", "updates=2", "algo.policy_delay=3", *DEEP),
    "sac-Pendulum-1": ("algo=sac", "env=Pendulum-v1", "num_envs=1", "replay.storage=memmap", *DEEP),
    "ddqn-Catch-wrapped-1": ("algo=ddqn", "env=pixels:Catch-v0", *STICKY, *PRIORITIZED, *DEEP),
    "ddqn-CartPole-beside": ("algo=ddqn", "env=CartPole-v1", "eval_every=60", "eval_process=separate", *DEEP),
}
ENVS = {
    "q_learning": ["FrozenLake-v1"],
    "dqn": ["CartPole-v1", "LunarLander-v3"],
    "ddqn": ["CartPole-v1", "LunarLander-v3"],
    "c51": ["CartPole-v1"],
    "qrdqn": ["CartPole-v1"],
    "munchausen": ["CartPole-v1"],
    "rainbow": ["CartPole-v1"],
    "discrete_sac": ["CartPole-v1"],
    "ddpg": ["Pendulum-v1", "Hopper-v5"],
    "d4pg": ["Pendulum-v1"],
    "td3": ["Pendulum-v1", "Hopper-v5"],
    "sac": ["Pendulum-v1", "Hopper-v5"],
    "tqc": ["Pendulum-v1"],
    "crossq": ["Pendulum-v1", "Hopper-v5"],
    "xqc_small": ["Pendulum-v1"],
    "redq": ["Pendulum-v1"],
    "droq": ["Pendulum-v1"],
    "simba": ["Pendulum-v1"],
    "bro_fast": ["Pendulum-v1"],
    "flashsac": ["Pendulum-v1"],
}
MATRIX = [
    pytest.param(algo, env, num_envs, accelerate, id=f"{algo}-{env}-{num_envs}-{accelerate}")
    for algo, envs in ENVS.items()
    for env in envs
    for num_envs in (1, 3)
    for accelerate in ("eager", "compile")
]


@pytest.mark.parametrize("overrides", FAST.values(), ids=FAST)
def test_killed_run_ends_with_the_same_bits(
    overrides: tuple[str, ...], configure: Callable[..., Config], tmp_path: Path
) -> None:
    check(configure(*TINY, *overrides), tmp_path, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("algo", "env", "num_envs", "accelerate"), MATRIX)
def test_killed_run_ends_with_the_same_bits_everywhere(
    algo: str, env: str, num_envs: int, accelerate: str, configure: Callable[..., Config], tmp_path: Path
) -> None:
    deep = () if algo == "q_learning" else (*DEEP, *BOUNDS) if algo == "d4pg" else DEEP
    if algo in ("simba", "bro_fast", "flashsac"):
        deep = (*BLOCKS, "++algo.reset_at=[300]")
    if algo == "discrete_sac":
        algo, deep = "sac", (*DISCRETE_SAC, *deep)
    overrides = (f"algo={algo}", f"env={env}", f"num_envs={num_envs}", f"accelerate={accelerate}", *deep)
    check(configure(*TINY, *overrides), tmp_path, seed=1)


def check(config: Config, directory: Path, seed: int) -> None:
    assert config.checkpoint_every is not None
    run_to_the_end(config, directory / "undisturbed" / "run")
    lines = (directory / "undisturbed" / "run" / METRICS).read_text().splitlines()
    speed = [row["charts/SPS"] for row in map(json.loads, lines) if "charts/SPS" in row]
    pause = config.checkpoint_every / max(speed)  # the slower ones may have been compiling
    kills = run_with_kills(config, directory / "killed" / "run", KILLS, pause, Random(seed))
    assert kills == KILLS, "the run ended before it was killed: give it more steps"
    assert_same(directory / "undisturbed" / "run", directory / "killed" / "run")
