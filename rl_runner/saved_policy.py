"""The policy of a run's newest checkpoint: `rl-runner eval DIR` and `rl-runner export DIR`."""

import math
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import RecordVideo
from torch import Tensor, nn

from rl_runner import persistence
from rl_runner.commands import parse
from rl_runner.config.environment import installed
from rl_runner.config.schema import Config, load_config
from rl_runner.console import quiet
from rl_runner.envs import Envs
from rl_runner.envs.process import contained, one_line
from rl_runner.envs.seeded import SeededEnv
from rl_runner.envs.spaces import action_map, choices
from rl_runner.errors import RunFailed, UserError
from rl_runner.evaluate import evaluator_of
from rl_runner.persistence import CHECKPOINT, CONFIG, POLICY, VIDEOS, checkpoint
from rl_runner.protocols import Agent
from rl_runner.run import build_agent

MAX_CHECKED = 256  # observations of an episode that an exported policy is compared on


def evaluate(argv: list[str]) -> dict[str, Any]:
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
    checkpoint.load_state(agent, saved.state["agent"])
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


def export(argv: list[str]) -> Path:
    """Export a policy, check that the file acts as the agent does, and say how to use it; the file."""
    arguments = parse("export", argv)
    config = load_config(arguments.directory / CONFIG, [*arguments.overrides, "device=cpu"])
    agent, step, rebuild = load(config, arguments.directory)
    envs = Envs(config.env, 1, config.seed, "export", rebuild=rebuild)
    obs = episode(agent, envs)
    file = arguments.out or arguments.directory / POLICY
    file.parent.mkdir(parents=True, exist_ok=True)
    space = envs.envs[0].action_space
    with torch.no_grad():
        any_size = ({0: torch.export.Dim("batch")},)
        program = torch.export.export(Policy(agent, space), (obs,), dynamic_shapes=any_size)
    torch.export.save(program, content := BytesIO())
    persistence.replace(file, content.getvalue())
    check(file, agent, space, obs)
    sizes = ", ".join(map(str, obs.shape[1:]))
    print(f"{config.env.id}, policy of step {step:,}: acts like the agent on {len(obs)} observations of an episode")
    print(f"{file}: action = torch.export.load({str(file)!r}).module()(obs), obs [B, {sizes}] {obs.dtype}")
    if behind := taken(config):
        print(behind)
    return file


def taken(config: Config) -> str | None:
    """What an exported policy takes where that is not what the environment itself gives, in words."""
    names, stack = [group["_target_"].rpartition(".")[2] for group in config.env.wrappers], config.env.frame_stack
    if keys := config.env.observation_keys:
        names.append(f"env.observation_keys=[{','.join(keys)}]")
    what = "an observation" if stack == 1 else f"the last {stack} observations, oldest first"
    behind = f", behind {', '.join(names)}" if names else ""
    return f"obs: {what}{behind}" if behind or stack > 1 else None


class Policy(nn.Module):
    """The evaluation policy from observations `[B, *obs]` to actions in the environment's own units, `[B, *action]`."""

    def __init__(self, agent: Agent, space: gym.Space):
        super().__init__()
        for name, part in vars(agent).items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)  # so that the file names the parameters
        self.act = agent.act
        self.table: Tensor | None = None
        if not isinstance(space, gym.spaces.Box):
            self.table = torch.from_numpy(action_map(space)(np.arange(math.prod(choices(space)))))
        else:
            self.dtype = torch.from_numpy(space.low).dtype
            self.low, self.high = (torch.from_numpy(bound).double() for bound in (space.low, space.high))

    def forward(self, obs: Tensor) -> Tensor:
        """The same as `action_map`, in PyTorch's words."""
        action = self.act(obs)
        if self.table is not None:
            return self.table[action]
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        scaled = middle + action.reshape(-1, *self.low.shape) * half
        if not self.dtype.is_floating_point:
            scaled = scaled.round()
        return scaled.clamp(self.low, self.high).to(self.dtype)


def check(file: Path, agent: Agent, space: gym.Space, obs: Tensor) -> None:
    """RunFailed if the exported policy does not act as the agent does."""
    exported = torch.export.load(file).module()(obs).numpy(force=True)
    expected = action_map(space)(agent.act(obs).numpy(force=True))
    if exported.shape != expected.shape or not np.allclose(exported, expected, rtol=1e-4, atol=1e-5):
        raise RunFailed(f"{file} does not act like the agent, so do not use it")


def episode(agent: Agent, envs: Envs) -> Tensor:
    """Observations of the policy's own episode, `[T, *obs]`; two at least, as a graph for any size wants."""
    seen = [envs.obs]
    while len(seen) < MAX_CHECKED:
        if envs.step(agent.act(envs.obs)).episodes and len(seen) > 1:
            break
        seen.append(envs.obs)
    return torch.cat(seen)
