"""What the documents quote must stand in the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [path.read_text() for path in (ROOT / "rl_runner").rglob("*.py")]


def test_every_quoted_line_stands_in_the_code() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "algorithms.md").read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 15
    missing = [line for line in lines if not any(f"{line}\n" in source for source in SOURCES)]
    assert missing == []
