"""A table, one content for the page, Markdown, CSV and the terminal."""

import csv
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rl_runner.report.names import markdown_escaped, spreadsheet_safe

NONE = "–"
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Cells under headings; the first `names` columns are names, the others figures.

    Columns without any content are shown nowhere but in CSV.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int = 1
    strong: frozenset[int] = field(default_factory=frozenset)

    def shown(self) -> tuple[list[int], list[str], list[list[str]]]:
        """The columns that have any content, their headings and cells as text."""
        rows = [[_text(cell) for cell in row] for row in self.rows]
        columns = [i for i in range(len(self.head)) if i == 0 or not rows or any(row[i] != NONE for row in rows)]
        return columns, [self.head[i] for i in columns], [[row[i] for i in columns] for row in rows]

    def html(self) -> str:
        columns, head, rows = self.shown()
        sides = ["" if i < self.names else ' class="num"' for i in columns]
        heads = "".join(f"<th{side}>{html.escape(cell)}</th>" for side, cell in zip(sides, head, strict=True))
        body = ""
        for index, row in enumerate(rows):
            told = zip(sides, row, strict=True)
            cells = "".join(f"<td{side}>{prose(cell, name=not side)}</td>" for side, cell in told)
            body += f"<tr{' class=best' if index in self.strong else ''}>{cells}</tr>"
        return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'

    def markdown(self) -> str:
        columns, head, rows = self.shown()
        rule = "| " + " | ".join("---" if i < self.names else "---:" for i in columns) + " |"
        first, *others = ["| " + " | ".join(map(markdown_escaped, row)) + " |" for row in [head, *rows]]
        return "\n".join([first, rule, *others])

    def text(self) -> str:
        columns, head, rows = self.shown()
        lines = [head, *rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        pads = [str.ljust if i < self.names else str.rjust for i in columns]
        padded = [[pad(cell, w) for pad, cell, w in zip(pads, line, widths, strict=True)] for line in lines]
        return "\n".join("  ".join(line).rstrip() for line in padded)

    def csv(self, path: Path) -> None:
        """Write all columns, numbers in full precision."""
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([_raw(cell) for cell in row] for row in [self.head, *self.rows])


def _text(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.6g}"
    return NONE if cell is None or cell == "" else str(cell)


def _raw(cell: Cell) -> Cell:
    return spreadsheet_safe(cell) if isinstance(cell, str) else cell


def prose(text: str, name: bool = False) -> str:
    """Escaped text; in what is no name with true minus signs, and intervals that no line breaks."""
    text = html.escape(text, quote=False).strip()
    if name:
        return text
    text = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
    return re.sub(r"(?<=\d), (?=[−\d])", ",\u00a0", text.replace(" [", "\u00a0["))
