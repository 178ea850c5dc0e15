"""Everything that can be known to go wrong, said before a run starts and before anything is written."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_runner.config.problems import key_of
from rl_runner.config.schema import Config, Parsed
from rl_runner.config.targets import PARTS
from rl_runner.errors import UserError
from rl_runner.wiring import names, wire

if TYPE_CHECKING:
    from rl_runner.envs import Spec

Targets = Mapping[str, Callable[..., Any]]
NETWORKS = ("network", "actor_network", "critic_network")
FITTING = {"discrete": "algo=dqn, ddqn or sac", "continuous": "algo=sac, td3 or ddpg"}


def validate(parsed: Parsed, directory: Path | None = None) -> Config:
    """The config, if it can run on this machine; UserError with one line for every problem.

    `directory`: where the run would lie, on a disk that has to hold its replay.
    """
    problems = list(parsed.problems)
    spec = None
    if parsed.env:
        from rl_runner.envs import examine  # which imports torch

        try:
            spec = examine(parsed.env.model_dump_json())[0]
        except UserError as error:
            problems.append(str(error))
    parsed, unfit = _for_actions(parsed, spec)
    config, algo = parsed.config, parsed.targets.get("algo")
    problems += [*unfit, *(_mismatches(algo, parsed, spec) if algo else ())]
    if config and spec:
        problems += _normalization_problems(config, algo, spec) if algo else ()
        config, unfit = _with_encoder(config, parsed.targets, spec)
        problems += unfit
    if config:
        config = _with_noise(config)
        problems += [*_device_problems(config), *_optimizer_problems(config), *_size_problems(config)]
        problems += _value_problems(config, algo)
        problems += [*_network_problems(config, algo), *_option_problems(config, algo)] if algo else ()
        if config.vectorization == "async" and config.num_envs == 1:
            problems.append("vectorization=async: a single environment has none to play beside; add num_envs=4")
    if config and spec and not problems:
        problems += _memory_problems(config, parsed.targets.get("replay"), spec, directory)
    if problems or config is None:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return config


def _for_actions(parsed: Parsed, spec: "Spec | None") -> tuple[Parsed, list[str]]:
    """`algo=sac` as the class for the environment's kind of actions, and what was typed that discrete ones lack."""
    from rl_runner.algos.discrete_sac import DiscreteSAC
    from rl_runner.algos.sac import SAC

    if parsed.targets.get("algo") is not SAC or spec is None or spec.num_actions is None:
        return parsed, []
    parsed = parsed._replace(targets=parsed.targets | {"algo": DiscreteSAC})
    if (config := parsed.config) is None:
        return parsed, []
    typed = _typed(config)
    kept = {key: value for key, value in config.algo.items() if names(DiscreteSAC, key)}
    algo = kept | {"_target_": f"{DiscreteSAC.__module__}.{DiscreteSAC.__name__}"}
    defaults = {key: parameter.default for key, parameter in inspect.signature(SAC).parameters.items()}
    problems = [
        f"algo.{key}={config.algo[key]}: is for continuous actions, {config.env.id} has discrete ones; leave it out"
        for key in sorted(config.algo.keys() - algo.keys())
        if f"algo.{key}" in typed or defaults[key] not in (config.algo[key], inspect.Parameter.empty)
    ]
    return parsed._replace(config=config.model_copy(update={"algo": algo})), problems


def _mismatches(algo: Any, parsed: Parsed, spec: "Spec | None") -> Iterator[str]:
    """What does not go together: algorithm and spaces, algorithm and network, algorithm and replay."""
    network, replay = parsed.targets.get("network"), parsed.targets.get("replay")
    actions, tabular = getattr(algo, "actions", None), getattr(algo, "observations", "any") == "discrete"
    if spec and parsed.env:
        offered = "continuous" if spec.num_actions is None else "discrete"
        name, use = parsed.env.id, FITTING[offered]
        if actions not in (None, offered):
            yield f"{algo.__name__} needs {actions} actions, {name} has {offered} ones: use {use}"
        elif tabular and spec.num_states is None:
            yield f"{algo.__name__} needs numbered states, {name} observes arrays: use {use}"
    for name in NETWORKS:
        chosen = parsed.targets.get(name)
        inherited = name != "network" and chosen is network
        if actions == "continuous" and getattr(chosen, "needs_discrete_actions", False) and not inherited:
            yield f"{name}=dueling is for discrete actions (algo=dqn or ddqn): use {name}=mlp"
    if replay and all(part.__module__.startswith("rl_runner.") for part in (algo, replay)):
        fitting = "last" if tabular else "uniform or prioritized"
        if tabular != (replay.__name__ == "LastReplay"):
            yield f"{algo.__name__} does not learn from {replay.__name__}: use replay={fitting}"


def _with_noise(config: Config) -> Config:
    """The config without ε where noise in the network explores, unless an ε was typed."""
    noisy, keys = config.network.get("noisy"), {"epsilon_min": 0.0, "epsilon_fraction": 0.0}
    if not noisy or "epsilon_min" not in config.algo or any(key.startswith("algo.epsilon_") for key in _typed(config)):
        return config
    return config.model_copy(update={"algo": config.algo | {"epsilon_schedule": "linear"} | keys})


def _typed(config: Config) -> set[str]:
    """The keys that stood on the command line."""
    return set(map(key_of, config._command_line))


def _normalization_problems(config: Config, algo: Any, spec: "Spec") -> Iterator[str]:
    """Why an algorithm need not see observations or rewards on another scale."""
    for key in (key for key in ("normalize_observations", "normalize_rewards") if getattr(config, key)):
        if getattr(algo, "observations", "any") == "discrete":
            yield f"{key}: {algo.__name__} learns a table, to which scales are all the same; leave it out"
        elif key == "normalize_observations" and not spec.obs_dtype.is_floating_point:
            seen = "bytes" if spec.num_states is None else "numbered states"
            yield f"{key}: {config.env.id} observes {seen}, whose scale is known; leave it out"


def _with_encoder(config: Config, targets: Targets, spec: "Spec") -> tuple[Config, list[str]]:
    """The config with the encoder that `auto` comes to for these observations, and why one of ours does not fit."""
    import torch

    from rl_runner import encoders

    try:
        if targets.get("encoder") is encoders.Auto:
            name = encoders.choice(spec)
            chosen = config.chosen | {"encoder": name}
            config = config.model_copy(update={"encoder": encoders.values_of(name), "chosen": chosen})
        make = config.factory("encoder")
        if make.func in (encoders.Flat, encoders.Conv):
            with torch.device("meta"):
                wire(make, {"spec": spec})
    except UserError as error:
        return config, [str(error)]
    if make.func is encoders.Conv and spec.images and config.normalize_observations:
        beside = f"normalize_observations: would scale the image {spec.images[0].key} with the numbers beside it"
        return config, [f"{beside}: leave it out, or use encoder=flat"]
    return config, []


def _device_problems(config: Config) -> Iterator[str]:
    import torch

    kind, _, index = config.device.partition(":")
    if config.accelerate == "cudagraph" and (kind == "cpu" or not torch.cuda.is_available()):
        yield "accelerate=cudagraph needs a CUDA device; use accelerate=compile or auto"
    elif kind == "cuda" and not torch.cuda.is_available():
        yield f"device={config.device}: no CUDA device here; use device=cpu or auto"
    elif kind == "cuda" and int(index or 0) >= (count := torch.cuda.device_count()):
        yield f"device={config.device}: there are {count} CUDA devices, counted from 0"


def _optimizer_problems(config: Config) -> Iterator[str]:
    """What the optimizers themselves refuse; PyTorch's signatures know types but no ranges."""
    import torch

    from rl_runner.optim import traceable

    for name in ("optimizer", *(part for part, role in PARTS.items() if role.base == "optimizer")):
        if not getattr(config, name):
            continue
        parameter, keys = torch.zeros(1, requires_grad=True), config.group(name)
        try:
            optimizer = config.factory(name)(params=[parameter])
            without_effect = ("fused", "capturable", "differentiable") if traceable(optimizer) else ("differentiable",)
            unused = [key for key in without_effect if keys.get(key)]
            yield from (f"{name}.{key}=true: does nothing here; leave it out" for key in unused)
            if not (unused or traceable(optimizer) or keys.get("capturable")):  # that one wants tensors on a GPU
                parameter.grad = torch.zeros_like(parameter)
                optimizer.step()  # what it needs besides, such as a closure, shows only here
        except Exception as error:
            yield f"{name}: {' '.join(str(error).split()) or type(error).__name__}"


def _value_problems(config: Config, algo: Any) -> Iterator[str]:
    """What a value head itself refuses, and what the algorithm would do without it."""
    from rl_runner.values import Categorical, Quantile

    try:
        value = config.factory("value")()
    except UserError as error:
        yield str(error)
        return
    if config.algo.get("huber") and isinstance(value, Categorical | Quantile):
        yield "algo.huber=true: is for value=scalar; use algo.huber=false"
    without_critics = getattr(algo, "actions", None) == "discrete" and not names(algo, "critic_network")
    if without_critics and getattr(value, "drop", None) is not None:
        yield f"value.drop={value.drop}: is for algorithms with critics; use value.drop=null"


def _option_problems(config: Config, algo: Any) -> Iterator[str]:
    """Options that do not go with each other, or with the algorithm."""
    if config.algo.get("munchausen") is not None and config.algo.get("double"):
        why = "selects an action, of which algo.munchausen's target is the mean"
        yield f"algo.double=true: {why}; use algo.double=false"
    if config.lr_end and config.lr_schedule == "constant":
        yield f"lr_end={config.lr_end:g}: is where a schedule ends: add lr_schedule=linear or cosine"
    unaware = algo.__module__.startswith("rl_runner.") and not hasattr(algo, "noisy_layers")
    for name in NETWORKS if unaware else ():
        if noisy := getattr(config, name).get("noisy"):
            yield f"{name}.noisy={noisy:g}: is for DQN and what is made of it; use {name}.noisy=null"


def _network_problems(config: Config, algo: Any) -> Iterator[str]:
    """What our networks refuse, by themselves or for what the algorithm does with them."""
    import torch

    learns_with_seeds = names(getattr(algo, "learn", algo), "seeds")
    if (part := config.algo.get("target_of") or 0) > (critics := config.algo.get("critics", 2)):
        yield f"algo.target_of={part}: there are {critics} critics: use algo.critics={part} or more"
    for name in NETWORKS:
        make, own = config.factory(name), getattr(config, name)
        if not names(algo, name) or not make.func.__module__.startswith("rl_runner."):
            continue
        place = {key: name if key in own else "network" for key in make.keywords}
        try:
            with torch.device("meta"):
                wire(make, {"n_in": 1, "n_out": 1})
        except UserError as error:
            key = str(error).partition("=")[0].removeprefix("network.")
            yield str(error).replace("network.", f"{place[key]}.")
        key, other = ("block", "pre_layer") if "block" in place else ("norm", "layer")
        if str(make.keywords.get(key)).endswith("batch") and config.algo.get("batch_size") == 1:
            line = "a batch of one has no variance: use algo.batch_size=256, or "
            yield f"algo.batch_size=1: {line}{place[key]}.{key}={other}"
        if rate := make.keywords.get("dropout"):
            where = f"{place['dropout']}.dropout={rate:g}"
            if not learns_with_seeds:
                yield f"{where}: {algo.__name__} leaves no units out: use {place['dropout']}.dropout=0"
            elif name != "critic_network":
                yield f"{where}: is for critics alone: use critic_network.dropout={rate:g}"


def _size_problems(config: Config) -> Iterator[str]:
    capacity = config.replay.get("capacity")
    for key, size in {"algo.batch_size": config.algo.get("batch_size", 0), "num_envs": config.num_envs}.items():
        if isinstance(capacity, int) and capacity < size:
            yield f"replay.capacity={capacity} is less than {key}={size}: use replay.capacity={size} or more"


def _memory_problems(config: Config, replay: Any, spec: "Spec", directory: Path | None) -> Iterator[str]:
    from rl_runner.machine import resolve_device
    from rl_runner.replay import check_memory

    where: dict[str, Any] = {"device": resolve_device(config.device), "directory": directory}
    keys = config.factory("replay").keywords
    try:
        if hasattr(replay, "nbytes") and "capacity" in config.replay:
            check_memory(replay, spec, config.num_envs, total_steps=config.total_steps, **where, **keys)
    except UserError as error:
        yield str(error)
