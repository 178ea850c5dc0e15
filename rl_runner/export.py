"""`rl-runner export DIR`: writes the policy of a run's newest checkpoint as one file that needs PyTorch alone."""

from io import BytesIO
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from rl_runner import persistence
from rl_runner.commands import parse
from rl_runner.config.schema import load_config
from rl_runner.envs import Envs
from rl_runner.envs.spaces import action_map
from rl_runner.errors import RunFailed
from rl_runner.persistence import CONFIG, POLICY
from rl_runner.protocols import Agent
from rl_runner.saved_policy import load

MAX_CHECKED = 256  # observations of an episode


def main(argv: list[str]) -> Path:
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
    return file


class Policy(nn.Module):
    """The evaluation policy from observations `[B, *obs]` to actions in the environment's own units, `[B, *action]`."""

    def __init__(self, agent: Agent, space: gym.Space):
        super().__init__()
        for name, part in vars(agent).items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)  # so that the file names the parameters
        self.act = agent.act
        self.start = int(space.start) if isinstance(space, gym.spaces.Discrete) else None
        if isinstance(space, gym.spaces.Box):
            self.dtype = torch.from_numpy(space.low).dtype
            self.low, self.high = (torch.from_numpy(bound).double() for bound in (space.low, space.high))

    def forward(self, obs: Tensor) -> Tensor:
        """The same as `action_map`, in PyTorch's words."""
        action = self.act(obs)
        if self.start is not None:
            return action + self.start
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
