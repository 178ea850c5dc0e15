"""What a user is told: one line for each problem, saying what is wrong and what to type instead."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from rl_runner import notes

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


# Our keys, and what Stable-Baselines3, CleanRL and Spinning Up call them.
THEIRS = {
    "actor_optimizer.lr": "pi_lr policy_lr",
    "algo.alpha": "autotune ent_coef",
    "algo.epsilon_fraction": "exploration_fraction",
    "algo.epsilon_min": "end_e exploration_final_eps",
    "algo.epsilon_schedule (epsilon always starts at 1)": "exploration_initial_eps start_e",
    "algo.noise_clip": "target_noise_clip",
    "algo.noise_scale": "act_noise action_noise exploration_noise",
    "algo.policy_delay": "policy_frequency",
    "algo.policy_noise": "target_noise target_policy_noise",
    "algo.target_every": "target_network_frequency target_update_interval",
    "algo.tau": "polyak",
    "device": "cuda",
    "env": "env_id",
    "env.kwargs": "env_kwargs",
    "env.max_episode_steps": "max_ep_len",
    "eval_episodes": "n_eval_episodes",
    "eval_every": "eval_freq",
    "learning_starts": "start_steps update_after",
    "log_every": "log_interval",
    "network": "policy",
    "network.activation": "activation_fn",
    "network.hidden": "ac_kwargs hidden_sizes net_arch policy_kwargs",
    "num_envs": "n_envs",
    "optimizer.lr": "learning_rate q_lr",
    "replay.capacity": "buffer_size replay_size",
    "replay.deduplicate": "optimize_memory_usage",
    "replay.n_step": "n_steps",
    "total_steps": "n_timesteps total_timesteps",
    "update_every": "train_freq train_frequency",
    "updates": "gradient_steps",
}
ELSEWHERE = {word: ours for ours, words in THEIRS.items() for word in words.split()}
# Keys of older versions, and what they are called now.
RENAMED = {"algo.actor_lr": "actor_optimizer.lr", "algo.alpha_lr": "alpha_optimizer.lr"}


def key_of(word: str) -> str:
    """The key of a word `key=value`, or of one that takes the key away."""
    return word.lstrip("+~").partition("=")[0]


def closest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `word` is probably a misspelling of, if any."""
    by_lower = {name.lower(): name for name in candidates}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[matches[0]] if matches else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean X?`, the end of a line, or nothing."""
    match = closest(word, candidates)
    return f"; did you mean {match}?" if match else ""


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The line for a key, a dotted path, that does not exist among all those that do."""
    if key in RENAMED:
        return f"{key}: is now {RENAMED[key]}"
    names = list(known)
    parent, _, last = key.rpartition(".")
    everywhere = {name.rpartition(".")[2]: name for name in reversed(names)}
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == parent}
    ours = next((ELSEWHERE[part] for part in key.split(".") if part in ELSEWHERE), None)
    if ours and last not in everywhere:
        group = f"{ours.partition('.')[0]}."
        lacks = ours.split()[0] not in names and any(name.startswith(group) for name in names)
        return f"{key}: no such key; here it is {ours}" + (f", which this {group[:-1]} does not have" if lacks else "")
    match = (
        everywhere.get(last)
        or siblings.get(closest(last, siblings) or "")
        or everywhere.get(closest(last, everywhere) or "")
    )
    return f"{key}: no such key" + (f"; did you mean {match}?" if match else "; --cfg job shows all keys")


def unknown_option(option: str) -> str:
    """The line for an option, which may be a key, ours or of another library, in the way of other programs."""
    key = option.lstrip("-").partition("=")[0].replace("-", "_")
    ours = ELSEWHERE.get(key)
    return f"no such option: {option}; " + (f"here it is {ours.split()[0]}=VALUE" if ours else "see rl-runner --help")


def unknown_choice(group: str, name: str, known: Iterable[str]) -> str:
    """The line for a file that a group does not have."""
    names = list(known)
    return f"{group}={name}: no such {group}{did_you_mean(name, names) or '; there are ' + ', '.join(names)}"


def value_problems(error: "ValidationError", known: Iterable[str], prefix: str = "") -> list[str]:
    """One line for each key that pydantic refuses."""
    names = list(known)
    by_key: dict[str, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        # What follows the first part of a location is an index, or the branch of a union.
        by_key.setdefault(f"{prefix}{detail['loc'][0]}", []).append(detail)
    missing = [key for key, details in by_key.items() if details[0]["type"] == "missing"]
    misspelt_first = sorted(by_key.items(), key=lambda item: item[1][0]["type"] != "extra_forbidden")
    lines = []
    for key, (first, *others) in misspelt_first:
        if first["type"] == "extra_forbidden":
            lines.append(unknown_key(key, names))
        elif key not in missing:
            wanted = [_wanted(detail) for detail in (first, *others) if "instance of Tensor" not in detail["msg"]]
            lines.append(f"{key}={_shown(first['input'])}: must be {' or '.join(dict.fromkeys(wanted))}")
    # A group's file may take what is missing from another one.
    source = f", or begin the file of this {prefix[:-1]} with defaults: [NAME of another]" if prefix else ""
    several = [f"{', '.join(missing)}: missing; give them values{source}"]
    return lines + (several if len(missing) > 1 else [f"{key}: missing; give it a value" for key in missing])


def override_problem(override: str, error: Exception, known: Iterable[str]) -> str:
    """The line for an override that Hydra refuses, from what Hydra says about it in several."""
    from hydra.errors import MissingConfigException, OverrideParseException  # the completion does not wait for these
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    key, value = key_of(override), override.partition("=")[2]
    first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    match error:
        case OverrideParseException() if "=" not in override:
            return f"{override}: not understood; a setting is key=value, --help shows the commands"
        case OverrideParseException() if value.startswith("glob("):
            return f"{override}: the pattern is not understood; quote it, as in \"{key}=glob('[a-c]*')\""
        case OverrideParseException():
            return f"{override}: the value is not understood; close its brackets, or quote it: {key}=\\'value\\'"
        case MissingConfigException(options=options) if options:
            return unknown_choice(key, value, options)
        case MissingConfigException(missing_cfg_file=str(file)) if value.startswith("["):  # one of several
            group, _, name = file.rpartition("/")
            return unknown_choice(group, name, notes.options(group, [notes.CONFIGS]))
    if isinstance(error.__cause__ or error, (ConfigAttributeError, ConfigKeyError)):
        return unknown_key(key, known)
    if first.startswith("Config group override must be"):
        return f"{override}: " + (f"write {key}=none" if key in ("preset", "tuned") else "choose by name, see --help")
    if first.startswith("Could not append"):
        return f"{override}: there is one already, so write {key}={value}"
    if first.startswith("Could not delete") and "does not exist" in first:
        return unknown_key(key, known)
    if first.startswith("Sweep parameters") and "interval(" in value:
        return f"{override}: an interval: add -m hydra/sweeper=optuna to search it"
    if first.startswith(("Ambiguous value", "Sweep parameters")):
        is_group = any(name.startswith(f"{key}.") for name in known)
        or_list = "" if is_group or first.startswith("Sweep") else f", or write {key}=[{value}] for a list"
        return f"{override}: several values: add -m to sweep over them{or_list}"
    return f"{override}: {' '.join(str(error).split()) if isinstance(error, YAMLError) else first}"


def flat_keys(config: Mapping[Any, Any], prefix: str = "") -> list[str]:
    """Dotted paths of all keys of a nested mapping."""
    keys = []
    for name, value in config.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            keys += flat_keys(value, f"{prefix}{name}.")
    return keys


def _wanted(detail: "ErrorDetails") -> str:
    """What the value should have been, from pydantic's "Input should be a valid integer, unable to parse ..."."""
    if "Sequence" in detail["msg"]:  # in the words of Python's types
        return "a list, such as [256,256]"
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return message.partition(", ")[0] if "parsing" in detail["type"] or "_type" in detail["type"] else message


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
