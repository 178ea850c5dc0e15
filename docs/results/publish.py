"""Makes the tables and pictures of docs/results.md from small copies of the runs behind them.

    python docs/results/publish.py NAME SWEEP_DIR...   copy what table NAME needs of finished runs, then make the page
    python docs/results/publish.py                     make the page anew from the copies

Beside this file, NAME/RUN/ holds each run's config.yaml, result.json and those rows of metrics.jsonl that have an
evaluation, and NAME.png the learning curves. In docs/results.md a table stands between `<!-- NAME -->` and
`<!-- end -->`; `<!-- NAME eval/q_bias -->` makes it, and the picture NAME_q_bias.png, of another quantity.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rl_runner.report import SCORE
from rl_runner.report.build import find, write
from rl_runner.report.markdown import markdown
from rl_runner.report.reference import Reference, read_reference
from rl_runner.rundir import CONFIG, METRICS, RESULT

HERE = Path(__file__).parent
PAGE = HERE.parent / "results.md"
TABLE = re.compile(r"(<!-- (\w+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def copy_runs(name: str, sweep: Path) -> int:
    """Copy every finished run of a sweep, thinned; how many they were."""
    results = sorted(sweep.glob(f"*/{RESULT}"))
    for result in results:
        copy = HERE / name / result.parent.name
        copy.mkdir(parents=True, exist_ok=True)
        shutil.copy(result, copy)
        shutil.copy(result.with_name(CONFIG), copy)
        rows = result.with_name(METRICS).read_text().splitlines(keepends=True)
        (copy / METRICS).write_text(
            "".join(row for row in rows if any(tag.startswith("eval/") for tag in json.loads(row)))
        )
    return len(results)


def made(name: str, tag: str) -> str:
    """The table, the conclusions and the picture of a set of copies, as Markdown."""
    published = HERE / f"{name}_reference.json"  # published scores to set beside
    reference = read_reference(published, []) if published.exists() else Reference()
    findings = find([HERE / name], tag, reference)
    picture = HERE / (f"{name}.png" if tag == SCORE else f"{name}_{tag.rpartition('/')[2]}.png")
    with TemporaryDirectory() as scratch:
        write(findings, Path(scratch), name)
        shutil.copy(Path(scratch) / "curves.png", picture)
    return markdown(findings, picture, PAGE.parent)


def main(words: list[str]) -> None:
    if words:
        name, *sweeps = words
        print(f"{sum(copy_runs(name, Path(sweep)) for sweep in sweeps)} finished runs copied")
    PAGE.write_text(TABLE.sub(_remade, PAGE.read_text()))


def _remade(found: re.Match[str]) -> str:
    start, name, tag, end = found.groups()
    return f"{start}{made(name, tag or SCORE)}{end}" if (HERE / name).is_dir() else found[0]


if __name__ == "__main__":
    main(sys.argv[1:])
