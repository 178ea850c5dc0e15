"""Makes the tables and pictures of docs/results.md from what NAME.jsonl holds of the runs behind them.

    python docs/results/publish.py NAME SWEEP_DIR...   add what table NAME needs of finished runs, then make the page
    python docs/results/publish.py                     make the page anew

A line of NAME.jsonl is a run: its config and command, its result without the single episodes, and its evaluations.
NAME.png shows the learning curves. In docs/results.md a table stands between `<!-- NAME -->` and `<!-- end -->`;
`<!-- NAME eval/q_bias -->` makes it, and the picture NAME_q_bias.png, of another quantity.
"""

import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from rl_runner.commands import SCORE
from rl_runner.persistence import CONFIG, METRICS, RESULT
from rl_runner.report import as_markdown, write
from rl_runner.report.aggregate import Reference, read_reference
from rl_runner.report.findings import Findings

HERE = Path(__file__).parent
PAGE = HERE.parent / "results.md"
EVALUATION = re.compile(r"step|eval/.*|values/q_error_max")  # the tags that are kept
TABLE = re.compile(r"(<!-- (\w+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def add_runs(name: str, sweeps: Sequence[Path]) -> int:
    """Add every finished run of the sweeps to a table's file, in place of one of the same name; how many they were."""
    file = HERE / f"{name}.jsonl"
    runs = {run["name"]: run for run in map(json.loads, file.read_text().splitlines())} if file.exists() else {}
    found = [packed(result.parent) for sweep in sweeps for result in sorted(sweep.glob(f"*/{RESULT}"))]
    runs |= {run["name"]: run for run in found}
    file.write_text("".join(json.dumps(run) + "\n" for _, run in sorted(runs.items())))
    return len(found)


def packed(directory: Path) -> dict[str, Any]:
    """What a run's directory holds that a table may need."""
    result = json.loads((directory / RESULT).read_text())
    config = (directory / CONFIG).read_text()
    rows = map(json.loads, (directory / METRICS).read_text().splitlines())
    evaluations = [{tag: value for tag, value in row.items() if EVALUATION.match(tag)} for row in rows]
    return {
        "name": directory.name,
        "command": config.partition("\n")[0],
        "config": yaml.safe_load(config),
        "result": {key: value for key, value in result.items() if key != "episode_returns"},
        "evaluations": [row for row in evaluations if len(row) > 1],
    }


def unpack(file: Path, place: Path) -> None:
    """Write the runs of a table's file as directories."""
    for run in map(json.loads, file.read_text().splitlines()):
        directory = place / run["name"]
        directory.mkdir()
        (directory / CONFIG).write_text(f"{run['command']}\n{yaml.safe_dump(run['config'], sort_keys=False)}")
        (directory / RESULT).write_text(json.dumps(run["result"]))
        (directory / METRICS).write_text("".join(json.dumps(row) + "\n" for row in run["evaluations"]))


def made(name: str, tag: str) -> str:
    """The table, the conclusions and the picture of a set of copies, as Markdown."""
    published = HERE / f"{name}_reference.json"  # published scores to set beside
    reference = read_reference(published, []) if published.exists() else Reference()
    picture = HERE / (f"{name}.png" if tag == SCORE else f"{name}_{tag.rpartition('/')[2]}.png")
    with TemporaryDirectory() as scratch:
        runs, report = Path(scratch, "runs"), Path(scratch, "report")
        runs.mkdir()
        unpack(HERE / f"{name}.jsonl", runs)
        findings = Findings([runs], tag, reference)
        write(findings, report, name)
        shutil.copy(report / "curves.png", picture)
    return as_markdown(findings, picture, PAGE.parent)


def main(words: list[str]) -> None:
    if words:
        name, *sweeps = words
        print(f"{add_runs(name, list(map(Path, sweeps)))} finished runs added")
    PAGE.write_text(TABLE.sub(_remade, PAGE.read_text()))


def _remade(found: re.Match[str]) -> str:
    start, name, tag, end = found.groups()
    return f"{start}{made(name, tag or SCORE)}{end}" if (HERE / f"{name}.jsonl").exists() else found[0]


if __name__ == "__main__":
    main(sys.argv[1:])
