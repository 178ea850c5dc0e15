"""The jobs of a sweep: what each is called, where it lies, what it came to, and what all of them would take."""

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

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rl_runner.config.problems import RENAMED
from rl_runner.config.schema import Config, save_config, words_to_trust
from rl_runner.config.targets import ROLES, is_difference
from rl_runner.console import printable
from rl_runner.envs import examine
from rl_runner.persistence import CONFIG, RESULT, STATUS, attempts, read_json, write_json
from rl_runner.train import updates_due
from rl_runner.wiring import names

LOG = "log.txt"
READ_OF_LOG = 10_000  # bytes at its end
LONGEST_LINE = 500  # of it that is shown
LONGEST_NAME = 120  # of a directory; file systems take 255 bytes
# What changes no number that a job writes.
IRRELEVANT = {"chosen", "plugins", "checkpoint_every", "dry_run", "fresh", "loggers", "eval_process", "vectorization"}
# What decides how long an environment step takes.
PACE = (
    "env", "network", "num_envs", "vectorization", "update_every", "updates", "device", "threads", "accelerate",
    "precision",
)  # fmt: skip
ALGO_PACE = ("_target_", "batch_size")
MOST_RUNS = 500  # finished ones whose times are looked at


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

    def set_status(self, state: str, error: str = "") -> None:
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
        with suppress(OSError), (self.directory / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - READ_OF_LOG))
            last = file.read().decode(errors="replace").strip().rpartition("\n")[2]
            return printable(last)[:LONGEST_LINE]
        return ""


def jobs_in(directory: Path, overrides: Sequence[Sequence[str]], configs: Sequence[Config]) -> list[Job]:
    """The jobs of a sweep, each named by those of its overrides that not all have; a repeated one once."""
    common = set.intersection(*map(set, overrides))
    differing = [[word.lstrip("+") for word in words if word not in common] for words in overrides]
    pairs = {job_hash(config): (words, config) for words, config in zip(differing, configs, strict=True)}
    return [placed(directory, words, config) for words, config in pairs.values()]


def placed(directory: Path, words: Sequence[str], config: Config) -> Job:
    """A job in the directory that its own config had before, or in a new one that its words name."""
    key = job_hash(config)
    words = words or ["job"]
    known = next(directory.glob(f"*,{key}"), None)
    name = ",".join(map(_path_safe, words))[: LONGEST_NAME - len(key) - 1]
    return Job(printable(", ".join(words)), config, known or directory / f"{name},{key}")


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
    """Eight hexadecimal digits for everything that decides a job's results.

    What is said in words of a later version is hashed in those from before, so that older sweeps go on: groups that say
    nothing new are left out, renamed keys stand in their old places.
    """
    values = config.model_dump(mode="json", exclude=IRRELEVANT)
    algo = config.factory("algo").func
    for old, new in RENAMED.items():
        (group, key), (part, name) = old.split("."), new.split(".")
        own = values.get(part, {})
        if names(algo, part) and is_difference(own):
            values[group][key] = own.get(name)
            values[part] = {other: value for other, value in own.items() if other != name}
    for part in ("network", "actor_network", "critic_network"):
        if (own := values.get(part, {})).get("norm") in ("none", "layer"):
            own["layer_norm"] = own.pop("norm") == "layer"
    news = {name: group for name, group in values.items() if name not in ROLES or group != ROLES[name].missing}
    return content_hash(news)


def content_hash(content: Mapping[str, Any] | Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def print_plan(jobs: Sequence[Job], directory: Path, n_jobs: int) -> None:
    """The table of jobs with their updates, memory and time, and what they come to together; nothing is started."""
    table = Table("job", "", "steps", "updates", "replay", "time", box=None, pad_edge=False)
    paces = paces_of(Path("outputs"))
    times: list[float | None] = []
    for job in jobs:
        config, pace = job.config, paces.get(_pace(job.config.model_dump(mode="json")))
        seconds = 0.0 if job.finished else pace and pace * config.total_steps
        times.append(seconds)
        state = "finished" if job.finished else "continues" if job.status() else "new"
        steps, updates, memory = f"{config.total_steps:,}", f"{_updates(config):,}", f"{_megabytes(config):,.1f} MB"
        time = "unknown" if seconds is None else duration(seconds)
        table.add_row(Text(job.name), state, steps, updates, memory, time)
    Console().print(table)
    at_once = min(n_jobs, len(jobs))
    lines = without_updates([job.config for job in jobs], "jobs")
    print(*lines, f"{len(jobs)} jobs in {directory}, {at_once} at once; time: {together(times, at_once)}", sep="\n")


def without_updates(configs: Sequence[Config], noun: str) -> list[str]:
    """A line for those configs that end before their first update, if there are any."""
    count = sum(_updates(config) == 0 for config in configs)
    cure = "they end before their first update: raise total_steps or lower learning_starts"
    return [f"warning: {count:,} of {len(configs):,} {noun} will learn nothing, {cure}"] if count else []


def together(times: Sequence[float | None], at_once: int) -> str:
    """How long all jobs take, in words: no less than the longest of them."""
    known = [seconds for seconds in times if seconds is not None]
    if len(known) < len(times):
        return "unknown, no similar run has finished under outputs/"
    return duration(max(sum(known) / at_once, *known))


def duration(seconds: float) -> str:
    """Two digits' worth of a time: 3 s, 12 min, 1.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def paces_of(outputs: Path) -> dict[str, float]:
    """Seconds per step of the latest finished runs, by what decides them."""
    paces = {}
    for path in sorted(outputs.rglob(RESULT), key=lambda path: path.stat().st_mtime)[-MOST_RUNS:]:
        with suppress(Exception):  # whatever else may lie there tells no time
            result, config = read_json(path), yaml.safe_load(path.with_name(CONFIG).read_text())
            paces[_pace(config)] = result["wall_seconds"] / result["total_steps"]
    return paces


def _pace(config: dict[str, Any]) -> str:
    return json.dumps([*map(config.get, PACE), *map(config["algo"].get, ALGO_PACE)], sort_keys=True)


def _updates(config: Config) -> int:
    return updates_due(config, config.algo.get("batch_size", 1), 0, config.total_steps)


def _megabytes(config: Config) -> float:
    """What the replay will hold when it is full."""
    make: Any = config.factory("replay")
    if not hasattr(make.func, "nbytes") or "capacity" not in make.keywords:
        return 0.0
    return make.func.nbytes(examine(config.env.model_dump_json())[0], config.num_envs, **make.keywords) / 1e6


def _path_safe(word: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", word, flags=re.ASCII).lstrip("_.-").rstrip("_")[:60]
