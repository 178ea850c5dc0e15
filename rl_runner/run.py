"""One run from a config to its result: wires the parts by keyword, then trains, evaluates and writes what came out."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rl_runner import accelerate, beside, header
from rl_runner.config.schema import Config, save_config, written_values
from rl_runner.config.targets import PARTS
from rl_runner.envs import Envs, Spec, probe_continuity
from rl_runner.envs.process import one_line
from rl_runner.errors import RunFailed
from rl_runner.evaluate import evaluator_of
from rl_runner.logger import Averages, Logger, finite
from rl_runner.machine import available, facts, resolve_device, set_up, versions
from rl_runner.normalize import Normalizer
from rl_runner.optim import lr_factor, with_schedule
from rl_runner.persistence import CHECKPOINT, CONFIG, RESULT, checkpoint, write_json
from rl_runner.persistence.checkpoint import Checkpoints, Saved, load_state, state_of, tensors
from rl_runner.persistence.session import Saver, Session, session_in
from rl_runner.protocols import Agent
from rl_runner.resume import check_config, check_finite, extends, finished, restore
from rl_runner.seeding import derive, generator
from rl_runner.train import Run, log_due, train, training_row, updates_due
from rl_runner.wiring import wire


def build(config: Config, directory: Path | None, rebuild: bool = False) -> Run:
    """Construct every part of a run; nothing else decides what it consists of."""
    apart = config.vectorization == "async"
    envs = Envs(config.env, config.num_envs, config.seed, rebuild=rebuild, apart=apart)
    agent, wired = build_agent(config, envs.spec)
    replay = wire(config.factory("replay"), wired | {"gamma": agent.gamma, "directory": directory})
    evaluator = evaluator_of(config, agent.gamma, rebuild)
    warm_up = generator(config.seed, "warm-up")
    renewed = partial(renew, agent, config, envs.spec)
    return Run(config, envs, agent, replay, evaluator, Averages(), warm_up, wired.get("normalizer"), renewed)


def build_agent(config: Config, spec: Spec) -> tuple[Agent, dict[str, Any]]:
    """The agent, and the parts that were there to be wired."""
    wired: dict[str, Any] = {
        "spec": spec,
        "num_envs": config.num_envs,
        "total_steps": config.total_steps,
        "seed": config.seed,
        "device": resolve_device(config.device),
    }
    wired |= {name: config.factory(name) for name in ("network", "optimizer", "encoder", "value", *PARTS)}
    torch.manual_seed(config.seed)  # PyTorch's own layers, in a network of the user's, draw from the global stream
    agent = wire(config.factory("algo"), wired)
    if config.normalize_observations or config.normalize_rewards:
        wired["normalizer"] = Normalizer(config, spec, agent)
        wired["normalizer"].attach(agent)
    return agent, wired


def renew(agent: Any, config: Config, spec: Spec, step: int) -> None:
    """Let networks, temperature and optimizers begin anew, by a seed of the step's own; the rest goes on (BRO)."""
    seed = derive(config.seed, f"reset at {step}")
    fresh, _ = build_agent(config.model_copy(update={"seed": seed}), spec)
    for name in agent.PARTS:
        if isinstance(part := getattr(agent, name), nn.Module | Tensor | Optimizer):
            load_state(part, state_of(getattr(fresh, name)))


def run(config: Config, directory: Path) -> dict[str, Any]:
    """Train as configured, or go on with what `directory` holds, and write everything there; result.json's content."""
    if config.dry_run:
        with TemporaryDirectory() as scratch:  # for a replay in files
            prepare(config, Path(scratch), None)
        return {}
    directory = directory.absolute()  # wherever an environment takes the process
    with session_in(directory) as session:
        saved = checkpoint.newest(directory / CHECKPOINT)
        if saved:
            check_config(config, saved, directory)
        if result := finished(config, saved, directory):
            steps = f"{result['total_steps']:,} steps"
            print(f"{directory} is finished: {steps}; resume it with a larger total_steps to extend it")
            return result
        try:
            return work(config, directory, session, saved)
        except (OSError, SystemExit) as error:  # of the disk; or of a class of the user's, and then no reason to end
            raise RunFailed(reason(error)) from error


def prepare(config: Config, directory: Path, saved: Saved | None) -> tuple[Run, dict[str, Any]]:
    """Build or restore the parts and say what will happen; the parts, and what was decided for the whole of the run."""
    device = set_up(config.device, config.threads, config.precision)
    before = beside.holdings()
    rebuild, continuity = saved.origin["environment"] if saved else probe_continuity(config.env)
    parts = build(config, directory, rebuild)
    held = beside.holdings() - before - parts.envs.holdings
    parts.beside, where = beside.choose(config.eval_process, device, bool(held))
    num_updates = updates_due(config, parts.agent.batch_size, 0, config.total_steps)
    wanted = saved.origin["accelerate"] if saved else config.accelerate
    precision = available(saved.origin.get("precision", config.precision) if saved else config.precision, device)
    mode, reason = accelerate.choose(wanted, parts.agent, parts.replay, device, num_updates)
    if saved and mode == wanted:
        reason = "as it began"
    origin = {
        "config": written_values(config),
        "environment": [rebuild, continuity],
        "accelerate": mode,
        "precision": precision,
        "machine": facts(device, parts.evaluator.envs.envs[0]),
    }
    print(header.describe(parts, num_updates, mode, reason, precision, continuity, where), flush=True)
    return parts, origin


def work(config: Config, directory: Path, session: Session, saved: Saved | None) -> dict[str, Any]:
    """Train, evaluate and write what came out, from the beginning or from a checkpoint."""
    parts, origin = prepare(config, directory, saved)
    update = accelerate.build_update(
        parts.agent, parts.replay, parts.averages, origin["accelerate"], origin["precision"]
    )
    if config.lr_schedule != "constant":  # before a checkpoint puts learning rates back that have fallen already
        factor = partial(lr_factor, config.lr_schedule, config.lr_end, config.total_steps)
        update = with_schedule(update, parts.agent, factor)
    log = checkpoint.log_of(parts.replay, directory / CHECKPOINT)
    if saved:
        restore(parts, log, saved, origin)
    session.begin(lambda: parts.step, config.total_steps)
    save_config(config, directory / CONFIG)
    (directory / RESULT).unlink(missing_ok=True)
    shared = {"directory": directory, "hparams": header.hparams(config)}
    sinks = {
        name: partial(config.factory(f"loggers.{name}", group), **shared) for name, group in config.loggers.items()
    }
    logger = Logger(directory, sinks, parts.step, saved.state["written"] if saved else None, session.show)
    checkpoints = Checkpoints(directory / CHECKPOINT, origin, log, saved)
    saver = Saver(parts, checkpoints, logger, session, saved.state["wall_seconds"] if saved else 0.0)

    if saved and extends(config, saved):
        log_due(parts, parts.step - config.num_envs, logger.write)  # the final evaluation's row had taken its place
    try:
        train(parts, update, logger.write, saver.after_step)
    except RunFailed:
        check_finite(parts)  # a loss that was not finite before names the culprit better than what came of it
        raise
    finally:
        checkpoints.wait()
        logger.catch_up(wait=True)
    return finish(parts, saver, logger, session)


def finish(parts: Run, saver: Saver, logger: Logger, session: Session) -> dict[str, Any]:
    """Evaluate a trained agent, and write what came out; RunFailed if the disk does not take all of it."""
    directory = session.directory
    unsaved = saver.save(wait=True)
    with session.impatient(unsaved):
        metrics, returns = parts.evaluator(parts.agent, parts.config.final_eval_episodes)
    logger.write(parts.step, training_row(parts) | metrics)
    session.bar.close()
    result = finite(metrics) | {
        "episode_returns": returns,
        "total_steps": parts.step,
        "updates": parts.updates,
        "wall_seconds": saver.wall_seconds,
        "sps": parts.step / max(parts.stopwatch.seconds, 1e-9),
        "params_sha256": params_sha256(parts.agent),
        "seed": parts.config.seed,
        "versions": versions(parts.evaluator.envs.envs[0]),
    }
    print(header.farewell(result, directory))
    problems = [unsaved, attempt(logger.close), attempt(lambda: write_json(directory / RESULT, result))]
    if not any(problems):
        problems = [attempt(session.end)]
    if said := "; ".join(filter(None, problems)):
        raise RunFailed(f"trained to its end, but {said}; to write what is missing: {session.resume}")
    return result


def attempt(write: Callable[[], Any]) -> str | None:
    """What keeps something from being written, if anything does."""
    try:
        write()
    except OSError as error:
        return reason(error)
    return None


def reason(error: BaseException) -> str:
    """A file and what is wrong with it, or else the error in one line."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else one_line(error)


def params_sha256(agent: Agent) -> str:
    """A fingerprint of every tensor of the agent's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors(state_of(agent))):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
