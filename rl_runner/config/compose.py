"""From what Hydra composed to a run."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rl_runner.config.problems import unknown_choice
from rl_runner.config.targets import GROUPS, PARTS
from rl_runner.config.words import as_typed
from rl_runner.errors import UserError, tell
from rl_runner.notes import CONFIGS as CONFIGS
from rl_runner.persistence import attempts

if TYPE_CHECKING:
    from rl_runner.config.schema import Config, Parsed

# What Hydra raises when it cannot compose what was asked for.
REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError)
FOR_SWEEPS = ("hydra/launcher=", "hydra/sweeper=", "hydra.launcher.", "hydra.sweeper.")
SWEEPERS = tuple(f"hydra_plugins.rl_runner.sweeper.{name}" for name in ("GridSweeper", "OptunaSweeper"))
CHOICES = ("env", *GROUPS, "tuned")


def train_job(composed: DictConfig) -> Any:
    """What Hydra runs: one training run; the content of its result file."""
    hydra = HydraConfig.get()
    try:
        from rl_runner.run import run

        config, _, _, problems = parse_composed(composed, hydra)
        if config is None:
            raise UserError("\n".join(problems))
        directory = Path(hydra.runtime.output_dir)
        return run(config, attempts(directory)[-1] if config.fresh else directory)
    except Exception as error:
        raise SystemExit(tell(error)) from error


class BeforeRun(Callback):
    """Validates a run before Hydra makes its directory; a dry run ends here."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.sweeper._target_ not in SWEEPERS:
            chosen = f"hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']}"
            raise SystemExit(tell(UserError(f"{chosen}: a sweep is planned by hydra/sweeper=grid or optuna")))

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        try:
            if ignored := [word for word in config.hydra.overrides.hydra if word.startswith(FOR_SWEEPS)]:
                raise UserError(f"{' '.join(ignored)} is for sweeps: add -m")
            if config.hydra.sweeper.get("params"):
                raise UserError(f"experiment={config.hydra.runtime.choices.experiment} is a sweep: add -m")
            validated = validate_composed(config)
            if not validated.dry_run:
                return
            from rl_runner.run import run

            run(validated, Path(config.hydra.run.dir))
        except Exception as error:
            raise SystemExit(tell(error)) from error  # Hydra turns other exceptions of a callback into warnings
        raise SystemExit(0)


def validate_composed(composed: DictConfig, unknown: Collection[str] = ()) -> "Config":
    """The config that Hydra composed, its own node included; UserError with one line for every problem.

    `unknown`: groups that stand at their default because the choice was refused; what they fit with is not judged.
    """
    from rl_runner.config.validate import validate

    HydraConfig.instance().set_config(composed)  # for values that interpolate it
    own = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    parsed = parse_composed(own, composed.hydra)
    targets = {group: target for group, target in parsed.targets.items() if group not in unknown}
    env = None if "env" in unknown else parsed.env
    return validate(parsed._replace(targets=targets, env=env), Path.cwd())


def parse_composed(composed: DictConfig, hydra: Any) -> "Parsed":
    """The values as far as they are sound, and the names of the files that they came from."""
    from rl_runner.config.schema import parse, plain

    values, written = plain(composed)
    choices = {group.rpartition("@")[2]: name for group, name in hydra.runtime.choices.items()}
    chosen = {
        group: str(name) for group, name in choices.items() if group in CHOICES and not (group in PARTS and not name)
    }
    tuned, known = chosen.pop("tuned", "none"), _known("tuned", hydra)
    if tuned in known and tuned != "none":
        chosen["tuned"] = tuned
    unresolved: Any = OmegaConf.to_container(hydra.overrides.task)  # a secret may be interpolated
    overrides = [as_typed(word) for word in unresolved]
    parsed = parse(values, chosen, written, overrides)
    problems = list(parsed.problems)
    typed = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if "env.id" in typed and "tuned" not in typed and tuned != "none" and parsed.env:
        problems += _tuned_for_another(parsed.env.id, chosen, known)
    if "tuned" in chosen:
        problems = [_or_untuned(line, tuned, typed) for line in problems]
    if tuned not in known and tuned != f"{chosen.get('algo')}_{chosen.get('env')}":
        # Hydra skips a missing optional file without a word, also where the user named it.
        problems.append(unknown_choice("tuned", tuned, known))
    return parsed._replace(config=None if problems else parsed.config, problems=problems)


def _tuned_for_another(env_id: str, chosen: Mapping[str, str], known: Collection[str]) -> list[str]:
    """A tuned file belongs to env=...: the id of another environment typed besides would get it, or miss its own."""
    own = f"{chosen.get('algo')}_{env_id}"
    file = chosen.get("tuned") or (own if own in known else None)
    if file is None or chosen.get("env") == env_id:
        return []
    belongs = env_id if file == own else chosen.get("env")
    return [f"env.id={env_id}: tuned/{file} goes with env={belongs}; write env={env_id}, or add tuned=none"]


def _or_untuned(line: str, tuned: str, typed: Collection[str]) -> str:
    """A key that the user did not type may come from the tuned file, which knows only the shipped classes."""
    key, _, complaint = line.partition(": ")
    named = any(f"{word}.".startswith(f"{key}.") for word in typed)
    untyped = complaint.startswith("no such key") and not named
    return f"{line}; or, if tuned/{tuned} sets it, tuned=none" if untyped else line


def _known(group: str, hydra: Any) -> list[str]:
    loader = GlobalHydra.instance().config_loader()
    overrides: Any = OmegaConf.to_container(hydra.overrides.hydra)  # they may name further search paths
    return loader.get_group_options(group, config_name=hydra.job.config_name, overrides=overrides)
