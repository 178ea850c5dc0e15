"""What the documents quote and count must stand in the code."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rl_runner.accelerate import build_update
from rl_runner.config.schema import Config
from rl_runner.run import build
from rl_runner.train import train, training_row

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rl_runner"
SOURCES = [path.read_text() for path in PACKAGE.rglob("*.py")]


def test_every_quoted_line_stands_in_the_code() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "algorithms.md").read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 15
    missing = [line for line in lines if not any(f"{line}\n" in source for source in SOURCES)]
    assert missing == []


def reading() -> dict[str, tuple[list[str], int]]:
    """The functions and the number of lines of each file of docs/reading.md, and the total under `together`."""
    rows = re.findall(r"^\| (?:`(\S+)`|together) \| (.*?) ?\| (\d+) \|$", (ROOT / "docs/reading.md").read_text(), re.M)
    return {file or "together": (re.findall(r"`(\S+)`", names), int(lines)) for file, names, lines in rows}


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Every function and method of a file, methods with and without the name of their class, and its lines."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, _lines(node)
        for method in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(method, ast.FunctionDef):
                yield f"{node.name}.{method.name}", _lines(method)
                yield method.name, _lines(method)


def _lines(node: ast.FunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) + 1


def test_the_path_of_an_update_has_the_length_that_is_told() -> None:
    path = reading()
    total = path.pop("together")[1]
    counted = {file: sum(dict(functions(PACKAGE / file))[name] for name in names) for file, (names, _) in path.items()}
    assert counted == {file: lines for file, (_, lines) in path.items()}
    assert sum(counted.values()) == total


def test_nothing_is_missing_on_the_path_of_an_update(configure: Callable[..., Config]) -> None:
    words = ("tuned=none", "learning_starts=30", "total_steps=40", "eval_every=0", "log_every=40")
    run = build(configure("algo=sac", "env=Pendulum-v1", "network.hidden=[8]", "algo.batch_size=8", *words), None)
    update, seen = build_update(run.agent, run.replay, run.averages, "eager"), set[tuple[str, str]]()
    train(run, update, lambda *row: None, lambda: None)

    def trace(frame: Any, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(PACKAGE) and "<" not in frame.f_code.co_name:
            seen.add((str(file.relative_to(PACKAGE)), frame.f_code.co_qualname.replace("<locals>.", "")))

    sys.setprofile(trace)
    try:
        update(run.step)
        training_row(run)
    finally:
        sys.setprofile(None)
    told = {(file, name) for file, (names, _) in reading().items() for name in names}
    inner = {("accelerate.py", "build_update.update"), ("accelerate.py", "flushing.call")}
    missing = {(file, name) for file, name in seen - told - inner if (file, name.rpartition(".")[2]) not in told}
    assert missing == set()
    assert ("algos/sac.py", "SAC.learn") in seen


def test_a_table_of_results_is_made_anew_from_its_file(tmp_path: Path) -> None:
    page = (ROOT / "docs/results.md").read_text()
    (table,) = re.findall(r"<!-- minigrid -->\n.*?<!-- end -->\n", page, re.DOTALL)
    results = tmp_path / "docs/results"
    results.mkdir(parents=True)
    for name in ("publish.py", "minigrid.jsonl"):
        shutil.copy(ROOT / "docs/results" / name, results)
    (tmp_path / "docs/results.md").write_text("# Results\n<!-- minigrid -->\n<!-- end -->\n")
    subprocess.run([sys.executable, results / "publish.py"], check=True)
    assert (tmp_path / "docs/results.md").read_text() == f"# Results\n{table}"
    assert (results / "minigrid.png").stat().st_size > 10_000
