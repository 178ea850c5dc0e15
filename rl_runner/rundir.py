"""The run directory is the contract: the names of its files, and how JSON and the config are put into them."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_runner.persistence import durable

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
STATUS = "status.json"
RESULT = "result.json"
CHECKPOINT = "checkpoint"
VIDEOS = "videos"
POLICY = "policy.pt2"
SWEEP = "sweep.json"  # marks a directory of runs that belong together, and holds their command
SEARCH = "search.json"  # what a search over hyperparameters has found
COMMAND = "# rl-runner "  # begins a saved config's first line, the command line


def write_json(path: Path, content: dict[str, Any], sync: bool = True) -> None:
    """Replace a JSON file atomically, and unless told otherwise durably."""
    durable.replace(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode(), sync)


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, or {} if there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def command_line_of(config: str) -> list[str]:
    """The words of the comment `# rl-runner key=value ...` above the text of a saved config."""
    first = config.partition("\n")[0]
    return shlex.split(first.removeprefix(COMMAND)) if first.startswith(COMMAND) else []


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def attempts(directory: Path) -> list[Path]:
    """The directories of repeated beginnings of the same: DIR, DIR_2, ...; the last one is yet to be used."""
    found = [directory]
    while found[-1].is_dir() and any(found[-1].iterdir()):
        found.append(directory.with_name(f"{directory.name}_{len(found) + 1}"))
    return found
