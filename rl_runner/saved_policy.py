"""`rl-runner eval DIR`: evaluates the policy of a run's newest checkpoint anew, and records a video of it."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.wrappers import RecordVideo

from rl_runner.commands import parse
from rl_runner.config.env_ids import installed
from rl_runner.config.schema import Config, load_config
from rl_runner.console import quiet
from rl_runner.envs.process import contained, one_line
from rl_runner.envs.seeded import SeededEnv
from rl_runner.envs.spaces import action_map
from rl_runner.errors import UserError
from rl_runner.evaluate import evaluator_of
from rl_runner.persistence import CHECKPOINT, CONFIG, VIDEOS, checkpoint
from rl_runner.persistence.state import load_state
from rl_runner.protocols import Agent
from rl_runner.run import build_agent


def main(argv: list[str]) -> dict[str, Any]:
    """Evaluate a saved policy and print how it did; the `eval/*` metrics and the return of each episode."""
    arguments = parse("eval", argv)
    config = load_config(arguments.directory / CONFIG, arguments.overrides)
    agent, step, rebuild = load(config, arguments.directory)
    camera = open_camera(config, arguments.directory / VIDEOS, step) if arguments.video else None
    episodes = arguments.episodes or config.final_eval_episodes
    evaluator = evaluator_of(config, agent.gamma, rebuild)
    metrics, returns = evaluator(agent, episodes)
    print(f"{config.env.id}, policy of step {step:,}, {episodes} episode{'' if episodes == 1 else 's'}")
    for tag, value in metrics.items():
        print(f"{tag} {value:.4g}")
    if camera:
        print(f"video: {film(agent, camera, config.eval_max_steps)}")
    return {**metrics, "episode_returns": returns}


def load(config: Config, directory: Path) -> tuple[Agent, int, bool]:
    """The agent as the newest checkpoint holds it, its environment step, whether episodes need new environments."""
    saved = checkpoint.newest(directory / CHECKPOINT, with_replay=False)
    if saved is None:
        raise UserError(f"{directory} holds no checkpoint yet: rl-runner resume {directory} goes on with the run")
    env = SeededEnv(config.env, (config.seed, "spec", 0))
    agent, _ = build_agent(config, env.spec)
    env.close()
    load_state(agent, saved.state["agent"])
    return agent, saved.step, saved.origin["environment"][0]


def open_camera(config: Config, folder: Path, step: int) -> SeededEnv:
    """The environment with a camera on it; UserError if there is nothing to see or to film with."""
    if not installed("moviepy"):
        raise UserError('recording needs moviepy: pip install "rl-runner[video]"')
    viewed = config.env.model_copy(update={"kwargs": config.env.kwargs | {"render_mode": "rgb_array"}})

    def refused(error: BaseException) -> UserError:
        said = str(error) if isinstance(error, UserError) else one_line(error)
        hint = "; on a machine without a display set MUJOCO_GL=egl" if "OpenGL" in said else ""
        return UserError(f"{viewed.id} cannot be filmed: {said}{hint}")

    with warnings.catch_warnings(), quiet():  # SDL and others complain of what nobody needs here
        warnings.simplefilter("ignore")  # that it would overwrite older videos; it does so for the same step only
        try:
            camera = SeededEnv(viewed, (config.seed, "eval", 0))
        except UserError as error:
            raise refused(error) from error
        with contained(viewed.id, refused):
            camera.env.reset(seed=0)
            if camera.env.render() is None:
                raise ValueError("render() shows nothing")
            camera.env = RecordVideo(camera.env, str(folder), lambda episode: True, name_prefix=f"step-{step}")
    return camera


def film(agent: Agent, env: SeededEnv, max_steps: int) -> Path:
    """Film the first evaluation episode; the file."""
    to_env = action_map(env.env.action_space)
    with quiet():
        obs = env.reset(0)
        while env.playing and env.length < (env.spec.max_episode_steps or max_steps):
            action = agent.act(torch.as_tensor(np.asarray(obs), dtype=env.spec.obs_dtype).unsqueeze(0))
            obs = env.step(to_env(action.numpy(force=True))[0])[0]
        env.close()
    video: Any = env.env
    return Path(video.video_folder) / f"{video.name_prefix}-episode-0.mp4"
