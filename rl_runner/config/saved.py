"""A saved config as it lies there, perhaps from a stranger, and what is typed to change it; nothing is resolved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_runner.config.problems import RENAMED, flat_keys, override_problem
from rl_runner.config.targets import GROUPS
from rl_runner.config.words import opened
from rl_runner.errors import UserError
from rl_runner.persistence import CONFIG, SWEEP, command_line_of, flatten


def read(path: Path) -> tuple[DictConfig, list[str]]:
    """The content of a saved config, and the command line that stands above it."""
    try:
        text = path.read_text("utf-8")
        saved = OmegaConf.create(renamed(yaml.safe_load(text)))
    except FileNotFoundError:
        raise UserError(_no_run(path.parent)) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(saved, DictConfig):
        raise UserError(f"{path} is not the config of a run")
    return saved, command_line_of(text)


def renamed(config: Any) -> Any:
    """A config from before some keys of our algorithms were renamed, with the new ones; null said nothing."""
    algo = config.get("algo") if isinstance(config, dict) else None
    if not isinstance(algo, dict) or not str(algo.get("_target_")).startswith("rl_runner."):
        return config
    config = config | {"algo": dict(algo)}
    for (_, key), (part, new) in ((old.split("."), new.split(".")) for old, new in RENAMED.items()):
        if (value := config["algo"].pop(key, None)) is not None:
            config[part] = config.get(part, {}) | {new: value}
    return config


def override(saved: DictConfig, overrides: Sequence[str]) -> set[str]:
    """Change the saved config by overrides; the keys that they name."""
    OmegaConf.set_struct(saved, True)
    problems: list[str] = []
    typed: set[str] = set()
    for text in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([opened(text)])
            key, value = parsed.package or parsed.key_or_group, parsed.value()
            if parsed.is_delete() or parsed.is_sweep_override():
                problems.append(f"{text}: a saved run takes key=value, one value each")
            elif key in ("env", *GROUPS) and not isinstance(value, dict):
                problems.append(f"{text}: a saved run keeps its {key} but for single keys; start a new run")
            else:
                OmegaConf.update(saved, key, value, force_add=parsed.is_force_add())
                typed |= flatten({key: value}).keys()
        except (HydraException, OmegaConfBaseException) as error:
            problems.append(override_problem(text, error, flat_keys(saved)))
    if problems:
        raise UserError("\n".join(problems))
    return typed


def _no_run(directory: Path) -> str:
    """What a directory without a config is instead."""
    runs = sorted(found.parent for found in directory.glob(f"*/{CONFIG}"))
    if (directory / SWEEP).exists():
        return f"{directory} is a sweep: name one of its {len(runs)} runs" + (f", such as {runs[0]}" if runs else "")
    return f"{directory} holds no run: there is no {CONFIG} in it" + (f"; did you mean {runs[-1]}?" if runs else "")
