"""What survives a kill: the files of a run directory by their names, and how they are written.

A file is written beside its place, brought to the disk, then renamed.
"""

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
    replace(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode(), sync)


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


def make_directory(directory: Path) -> None:
    """Make a directory that a power cut leaves in its place; those that lead there may be as new, whoever made them."""
    directory.mkdir(parents=True, exist_ok=True)
    for parent in directory.absolute().parents:
        with suppress(PermissionError):  # then it was there before
            sync_directory(parent)


def replace(path: Path, content: bytes, sync: bool = True) -> None:
    """Give a file new content: readers see the old one or the new one, never a part of it.

    With `sync=False` the disk may learn of it later, which is enough against the end of the process alone.
    """
    temporary = path.with_name(path.name + ".tmp")
    with named(path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                write_all(descriptor, content, 0)
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)  # a full disk must not stay full of what could not be finished
            raise
        if sync:
            sync_directory(path.parent)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Let every OSError say which file it is about."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def write_all(descriptor: int, content: bytes | memoryview, offset: int) -> None:
    """Write all bytes at an offset; OSError if the disk does not take them."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def sync_directory(directory: Path) -> None:
    """Bring the names of a directory's files to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def no_run(directory: Path) -> str:
    """What a directory without a config is instead."""
    runs = sorted(found.parent for found in directory.glob(f"*/{CONFIG}"))
    if (directory / SWEEP).exists():
        return f"{directory} is a sweep: name one of its {len(runs)} runs" + (f", such as {runs[0]}" if runs else "")
    return f"{directory} holds no run: there is no {CONFIG} in it" + (f"; did you mean {runs[-1]}?" if runs else "")
