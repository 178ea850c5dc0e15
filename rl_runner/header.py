"""What a run says of itself: before, in plain words, what will happen; afterwards where everything lies."""

import math
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl_runner import notes
from rl_runner.config.schema import Config, written_values
from rl_runner.encoders import Conv, Flat, image_of, pictured
from rl_runner.envs import Spec
from rl_runner.envs.spaces import SMALLEST
from rl_runner.optim import optimizers
from rl_runner.persistence import flatten
from rl_runner.train import Run

MACHINE = (  # what decides how, not what is learned
    "device", "threads", "accelerate", "precision", "eval_process", "vectorization", "log_every", "checkpoint_every",
    "plugins", "dry_run", "fresh",
)  # fmt: skip


def describe(run: Run, num_updates: int, mode: str, reason: str, precision: str, continuity: str, where: str) -> str:
    """The header: one line per decision that shapes the run."""
    config, spec = run.config, run.envs.spec
    threads = _plural(torch.get_num_threads(), "CPU thread")
    modules = dict.fromkeys(value for value in vars(run.agent).values() if isinstance(value, nn.Module))  # each once
    image = image_of(spec)  # which may be flattened, if its numbers are no bytes
    kinds = (Conv, Flat) if image and min(image[1:]) >= SMALLEST else (Conv,)
    encoders = [part for module in modules for part in module.modules() if isinstance(part, kinds)]
    num_parameters = sum(p.numel() for module in modules for p in module.parameters() if p.requires_grad)
    seen = f"of {spec.num_states:,} states" if spec.num_states else f"{[*spec.obs_shape]} {str(spec.obs_dtype)[6:]}"
    acts = f"{spec.num_actions} discrete actions" if spec.num_actions else f"{spec.action_dim}-dimensional actions"
    lines = [
        f"{config.chosen.get('algo', type(run.agent).__name__)} on {config.env.id}, seed {config.seed}",
        f"observations {seen}, {acts}; {_plural(config.num_envs, 'environment')}"
        + (", each in a process of its own" if config.vectorization == "async" else ""),
        *(encoder(spec, config, part.n_out) for part in encoders[:1]),
        *around(config),
        learning(run, num_updates),
        *getattr(run.agent, "remarks", lambda: [])(),
        *normalization(config),
        f"replay: {replay(run)}",
        f"parameters: {num_parameters:,}; {mode} ({reason}); {threads}"
        + ("; learns by products in bfloat16" if precision == "bfloat16" else ""),
        f"environment: {continuity}",
        f"evaluation: {evaluation(config)}" + (f"; {where}" if config.eval_every else ""),
    ]
    if spec.max_episode_steps is None:
        lines.append(
            f"{config.env.id} has no time limit: evaluation cuts its episodes at {config.eval_max_steps:,} steps"
        )
    if (tuned := config.chosen.get("tuned")) not in (None, "none", "None"):
        lines.append(f"tuned settings from tuned/{tuned}.yaml (tuned=none switches them off)")
    if config.precision == "bfloat16" != precision:
        lines.append("precision=bfloat16: not on this machine, which has no instructions for it; float32 instead")
    if num_updates == 0:
        sooner = " or lower learning_starts" if config.learning_starts else ""
        lines.append(f"warning: nothing will be learned, the run ends too early: raise total_steps{sooner}")
    return "\n".join(map(_wrapped, lines))


def learning(run: Run, num_updates: int) -> str:
    """How often and how much is learned, in words."""
    config = run.config
    every = "environment step" if config.update_every == 1 else f"{config.update_every:,} environment steps"
    random, first_batch = config.learning_starts, run.agent.batch_size
    warm_up = f" after {random:,} random ones" if random else ""
    if random < first_batch - 1:
        before = f"{random:,} random ones, then " if random else ""
        warm_up = f" after {first_batch - 1:,} ({before}until a batch of {first_batch:,} is there)"
    clip = config.clip_rewards
    clipped = f"; rewards are learned within [-{clip:g}, {clip:g}]" if clip else ""
    falls, end = config.lr_schedule != "constant" and optimizers(run.agent), config.lr_end
    falling = f", learning rates falling to {f'{end:g} of what they are' if end else 0}" if falls else ""
    resets = ", ".join(f"{at:,}" for at in getattr(run.agent, "reset_at", ()))
    return (
        f"{config.total_steps:,} environment steps; {_plural(config.updates, 'update')} per {every}{warm_up}, "
        f"{num_updates:,} in all{falling}{clipped}" + (f"; networks begin anew at {resets}" if resets else "")
    )


def normalization(config: Config) -> list[str]:
    """What the agent sees on another scale, in words."""
    said = ["observations by their running mean and standard deviation"] if config.normalize_observations else []
    if config.normalize_rewards:
        said.append(f"rewards, so that discounted returns lie within about ±{config.normalize_rewards:g}")
    what = ", ".join(said)
    return [f"normalized for learning: {what}; logs and evaluation in the environment's units"] if said else []


def encoder(spec: Spec, config: Config, n_out: int) -> str:
    """What images go through, in words."""
    channels, height, width = image_of(seen := pictured(spec)) or (0, 0, 0)
    name = config.chosen.get("encoder", "convolutions")
    size = f"an image of {height}x{width} with {_plural(channels, 'channel')}"
    if beside := math.prod(spec.obs_shape) - math.prod(seen.obs_shape):
        size += f" beside {_plural(beside, 'number')}"
    return f"encoder: {name}, {size} becomes {n_out:,} features (encoder=NAME chooses another)"


def around(config: Config) -> list[str]:
    """What stands around the environment, and the preset that it may come from, in words."""
    lines = []
    if preset := config.chosen.get("preset"):
        files = [file for file in notes.files({"preset": preset}, [notes.CONFIGS]) if file.group == "preset"]
        said = f": {files[-1].header}" if files else ""
        lines.append(f"preset {preset} (preset=none switches it off){said}")
    if names := [group["_target_"].rpartition(".")[2] for group in config.env.wrappers]:
        limit = f"; at most {config.env.max_episode_steps:,} steps" if config.env.max_episode_steps else ""
        lines.append(f"wrappers, inner to outer: {', '.join(names)}{limit}")
    return lines


def replay(run: Run) -> str:
    """What the replay holds and takes, in words."""
    keys = {key: value for key, value in run.config.replay.items() if key != "_target_"}
    name = run.config.chosen.get("replay", type(run.replay).__name__)
    nbytes = getattr(run.replay, "nbytes", None)
    if nbytes is None or "capacity" not in keys:
        return name
    total = nbytes(run.envs.spec, run.config.num_envs, **keys)
    each = total / keys["capacity"]
    steps = f", {keys['n_step']}-step returns" if keys.get("n_step", 1) > 1 else ""
    return f"{name}, {keys['capacity']:,} transitions of {each:.0f} bytes, {total / 1e6:,.1f} MB{steps}"


def evaluation(config: Config) -> str:
    """When and how long evaluations are."""
    chance = f", random actions with probability {config.eval_epsilon:g}" if config.eval_epsilon else ""
    final = f"{_plural(config.final_eval_episodes, 'episode')} at the end{chance}"
    if config.eval_every == 0:
        return final
    return f"{_plural(config.eval_episodes, 'episode')} every {config.eval_every:,} steps, {final}"


def farewell(result: dict[str, Any], directory: Path) -> str:
    """The last lines: the outcome, and where everything lies."""
    beside = directory.parent  # whose other runs are worth a look, unless that is all the files there are
    place = directory if Path.cwd().is_relative_to(beside.absolute()) else beside
    mean, std = result["eval/return_mean"], result["eval/return_std"]
    return (
        f"final evaluation: {mean:.2f} ± {std:.2f} over {len(result['episode_returns'])} episodes; "
        f"{result['sps']:,.0f} steps per second, random ones included\n"
        f"everything lies in {directory}\n"
        f"curves: tensorboard --logdir {shlex.quote(str(place))}"
    )


def hparams(config: Config) -> dict[str, int | float | str | bool]:
    """The config flattened for TensorBoard's HPARAMS tab, which sorts by name and would begin with the machine's."""
    flat = flatten({key: value for key, value in written_values(config).items() if key not in MACHINE})
    return {
        key.removeprefix("chosen."): value if isinstance(value, int | float | str) else str(value)
        for key, value in flat.items()
        if not key.endswith("._target_")  # the chosen names say it shorter
    }


def _wrapped(line: str) -> str:
    """A line broken at words, for the terminal's width."""
    columns = shutil.get_terminal_size((100, 24)).columns
    return textwrap.fill(line, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
