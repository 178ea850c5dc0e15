"""The jobs of a sweep: what each is called, where it lies, and what it came to."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_runner.config.schema import Config, save_config, words_to_trust
from rl_runner.rundir import CONFIG, RESULT, STATUS, attempts, read_json, write_json

LOG = "log.txt"
END_OF_LOG = 10_000  # bytes that are read of it
LONGEST_LINE = 500  # of it that is shown
LONGEST_NAME = 120  # of a directory; file systems take 255 bytes
# What changes no number that a job writes.
IRRELEVANT = {"chosen", "plugins", "checkpoint_every", "dry_run", "fresh"}


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep; its name says how it differs from the others."""

    name: str
    config: Config
    directory: Path

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        reached = read_json(self.directory / RESULT).get("total_steps", -1)
        return self.status().get("state") == "finished" and reached >= self.config.total_steps

    def status(self) -> dict[str, Any]:
        return read_json(self.directory / STATUS)

    def say(self, state: str, error: str = "") -> None:
        """Write a status on behalf of a process that cannot: one that has not begun, or that has died."""
        status = {key: value for key, value in self.status().items() if key != "error"}
        with suppress(OSError):  # a full disk; other jobs may still come to their ends
            write_json(self.directory / STATUS, status | {"state": state} | ({"error": error} if error else {}))

    def save(self) -> None:
        """Make the directory with the config, which is all that a process needs to begin or to continue."""
        self.directory.mkdir(parents=True, exist_ok=True)
        save_config(self.config, self.directory / CONFIG)

    def command(self) -> list[str]:
        """What runs the job, or goes on with it, wherever its directory can be seen."""
        place = str(self.directory.absolute())
        return [sys.executable, "-m", "rl_runner", "resume", place, *words_to_trust(self.config)]

    def last_line(self) -> str:
        """The last line that the job has printed."""
        try:
            with (self.directory / LOG).open("rb") as file:
                file.seek(-min(END_OF_LOG, file.seek(0, os.SEEK_END)), os.SEEK_END)
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return _printable(last[:LONGEST_LINE])


def jobs_in(directory: Path, overrides: Sequence[Sequence[str]], configs: Sequence[Config]) -> list[Job]:
    """The jobs of a sweep; a repeated one once."""
    pairs = {job_hash(config): (words, config) for words, config in zip(differing(overrides), configs, strict=True)}
    return [placed(directory, words, config) for words, config in pairs.values()]


def placed(directory: Path, words: Sequence[str], config: Config) -> Job:
    """A job in the directory that its own config had before, or in a new one that its words name."""
    key = job_hash(config)
    words = words or ["job"]
    known = next(directory.glob(f"*,{key}"), None)
    name = ",".join(map(_path_safe, words))[: LONGEST_NAME - len(key) - 1]
    return Job(_printable(", ".join(words)), config, known or directory / f"{name},{key}")


def differing(overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """Each job's overrides without those that all jobs have."""
    common = set.intersection(*map(set, overrides))
    return [[word.lstrip("+") for word in words if word not in common] for words in overrides]


def sweep_directory(template: str, identity: Sequence[Any], fresh: bool) -> Path:
    """Where a sweep lies; `{jobs}` in the template becomes a hash of its identity.

    Fresh means the next numeral behind it; otherwise the newest attempt goes on.
    """
    *used, unused = attempts(Path(template.replace("{jobs}", content_hash(identity))))
    return used[-1] if used and not fresh else unused


def grid_identity(configs: Sequence[Config]) -> list[str]:
    """What makes two grids the same, however they were written down: their jobs."""
    return sorted({job_hash(config) for config in configs})


def job_hash(config: Config) -> str:
    """Eight hexadecimal digits for everything that decides a job's results."""
    return content_hash(config.model_dump(mode="json", exclude=IRRELEVANT))


def content_hash(content: Mapping[str, Any] | Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _path_safe(word: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", word, flags=re.ASCII).lstrip("_.-").rstrip("_")[:60]


def _printable(text: str) -> str:
    """One line that does nothing to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
