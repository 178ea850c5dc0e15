"""Rows on their way to metrics.jsonl and the sinks, which may fail without stopping anything."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rl_runner.logger import Logger

ROWS = [(1, {"a": 1.0}), (2, {"a": 2.0, "b": 0.5}), (3, {"a": 3.0})]


class Memory:
    """A sink that keeps its rows, and fails where it is told."""

    made: ClassVar[list["Memory"]] = []
    failing = ""

    def __init__(self, *, step: int, state: Any):
        self.step, self.rows = step, list(state["rows"]) if state else []
        self.fail("made")
        Memory.made.append(self)

    def fail(self, where: str) -> None:
        if where == Memory.failing:
            raise RuntimeError("no\nroom")

    def write(self, step: int, row: Any) -> None:
        self.fail("write")
        self.rows.append([step, dict(row)])

    def sync(self) -> dict[str, Any]:
        self.fail("sync")
        return {"rows": list(self.rows)}

    def close(self) -> None:
        self.fail("close")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "made", [])
    monkeypatch.setattr(Memory, "failing", "")


@pytest.mark.parametrize("where", ["made", "write", "sync", "close"])
def test_a_sink_that_fails_is_named_once_and_gets_all_rows_later(
    where: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Memory.failing = where
    logger = Logger(tmp_path, {"memory": Memory})
    logger.write(*ROWS[0])
    logger.write(*ROWS[1])
    if where != "close":
        assert logger.sync()["sinks"] == {"memory": {}}
        Memory.failing = ""
    logger.write(*ROWS[2])
    logger.close()
    said = capfd.readouterr().err.splitlines()
    assert set(said) == {"memory pauses (RuntimeError: no room); metrics.jsonl goes on"}
    assert Memory.made[-1].rows == [[step, row] for step, row in ROWS]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": step, **row} for step, row in ROWS]


@pytest.mark.parametrize("known", [True, False], ids=["from its state", "new to the run"])
def test_a_sink_goes_on_where_the_checkpoint_was(known: bool, tmp_path: Path) -> None:
    first = Logger(tmp_path, {"memory": Memory})
    for step, row in ROWS[:2]:
        first.write(step, row)
    written = first.sync()
    first.write(9, {"a": 9.0})  # lost with the process
    again = Logger(tmp_path, {"memory": Memory}, 2, written if known else written | {"sinks": {}})
    again.write(*ROWS[2])
    again.close()
    assert Memory.made[-1].step == (2 if known else 0)
    assert Memory.made[-1].rows == [[step, row] for step, row in ROWS]


def test_a_state_that_no_checkpoint_can_hold_pauses_the_sink_and_not_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd(Memory):
        """Keeps what is no JSON, and counts as nothing."""

        def __len__(self) -> int:
            return 0

        def sync(self) -> dict[str, Any]:
            return {"rows": self.rows, "place": tmp_path}

    logger = Logger(tmp_path, {"odd": Odd})
    logger.write(*ROWS[0])
    assert Memory.made[-1].rows == [[1, {"a": 1.0}]]
    assert logger.sync()["sinks"] == {"odd": {}}
    assert "odd pauses (TypeError: Object of type PosixPath" in capfd.readouterr().err
