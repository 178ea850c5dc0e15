"""The rows of a ring on disk: files that are only ever appended to, so that a checkpoint costs its new rows alone."""

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl_runner import persistence
from rl_runner.replay.ring import Ring

FILES_PER_WINDOW = 64

Description = dict[str, Any]


class RowLog:
    """Row r, counted since the run's start, stands in file r // rows_per_file, each column in a stretch of its own.

    Nothing that an earlier checkpoint describes is ever written again: old files go when no kept checkpoint names
    them. The newest time row and the observations behind it may still change (`Ring.cut`), so they travel with the
    small state. The description of a log, plain JSON, is {"rows_per_file", "end", "columns": {name: bytes per row},
    "files": {number: [first row, CRC-32 of each column's rows so far, ...]}}.
    """

    def __init__(self, directory: Path, ring: Ring):
        self._directory, self._ring = directory, ring
        rows_per_file = max(1024, ring.window // FILES_PER_WINDOW)
        columns = {name: column[0].nbytes for name, column in ring.columns.items()}
        self.description: Description = {"rows_per_file": rows_per_file, "end": 0, "columns": columns, "files": {}}

    def append(self) -> Description:
        """Write the settled rows that are not on file yet; the new description, valid once its files are synced."""
        directory, span, old = self._directory, self._ring.span, self.description
        directory.mkdir(parents=True, exist_ok=True)
        size, first, end = old["rows_per_file"], max(old["end"], span.start), self._settled
        files = {number: entry for number, entry in old["files"].items() if (int(number) + 1) * size > span.start}
        for number in range(first // size, -(-end // size)) if first < end else ():
            rows = range(max(first, number * size), min(end, (number + 1) * size))
            begun, *checksums = files.get(str(number), [rows.start])
            if not checksums or first > old["end"]:  # rows in between were never saved and have left the window
                begun, checksums = rows.start, [0] * len(old["columns"])
            files[str(number)] = [begun, *self._write(number, rows, checksums)]
        return old | {"end": end, "files": files}

    def sync(self, description: Description) -> None:
        """Bring what `append` wrote to the disk."""
        for number, entry in description["files"].items():
            if entry != self.description["files"].get(number):
                with _path(self._directory, number).open("rb") as file:
                    os.fsync(file.fileno())
        persistence.sync_directory(self._directory)

    def newest(self) -> dict[str, Tensor]:
        """The rows of every column that are not settled yet, for the small state."""
        positions = self._positions(range(self._settled, self._ring.span.stop))
        return {name: column[positions] for name, column in self._ring.columns.items()}

    def restore(self, description: Description, newest: dict[str, Tensor]) -> None:
        """Fill the ring, whose own state must be there already, from files that `verify` found sound."""
        span, columns = self._ring.span, self._ring.columns
        for number, (begun, *_) in description["files"].items():
            stored = _rows_of(description, number, begun)
            wanted = range(max(stored.start, span.start), min(stored.stop, span.stop))
            for name, data in zip(columns, _read(self._directory, description, number, wanted), strict=True):
                if data:
                    values = torch.frombuffer(data, dtype=columns[name].dtype)
                    columns[name][self._positions(wanted)] = values.view(len(wanted), *columns[name].shape[1:])
        positions = self._positions(range(self._settled, span.stop))
        for name, values in newest.items():
            self._ring.columns[name][positions] = values.to(positions.device)
        self.description = description

    @property
    def _settled(self) -> int:
        return max(0, self._ring.head - self._ring.num_envs)

    def _positions(self, rows: range) -> Tensor:
        device = self._ring.columns["reward"].device
        return torch.arange(rows.start, rows.stop, device=device) % self._ring.rows

    def _write(self, number: int, rows: range, checksums: list[int]) -> list[int]:
        """Put rows into a file and carry the columns' checksums on."""
        descriptor = os.open(_path(self._directory, str(number)), os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            positions, carried = self._positions(rows), []
            places = _stretches(self.description, rows)
            for column, (offset, _), checksum in zip(self._ring.columns.values(), places, checksums, strict=True):
                data = np.ascontiguousarray(column[positions].cpu().numpy()).data.cast("B")
                persistence.write_all(descriptor, data, offset)
                carried.append(zlib.crc32(data, checksum))
        finally:
            os.close(descriptor)
        return carried


def verify(directory: Path, description: Description) -> str | None:
    """What is wrong with the files of a log, in words; None if every row is as it was written."""
    for number, (begun, *checksums) in description["files"].items():
        try:
            data = _read(directory, description, number, _rows_of(description, number, begun))
        except OSError as error:
            return f"{_path(directory, number).name}: {error.strerror}"
        if [zlib.crc32(column) for column in data] != checksums:
            return f"{_path(directory, number).name} is damaged"
    return None


def remove_unnamed(directory: Path, descriptions: list[Description]) -> None:
    """Remove the files that no description names."""
    named = {_path(directory, number) for description in descriptions for number in description["files"]}
    for path in directory.iterdir() if directory.exists() else ():
        if path not in named:
            path.unlink()


def _path(directory: Path, number: str) -> Path:
    return directory / f"{int(number):06d}.rows"


def _rows_of(description: Description, number: str, begun: int) -> range:
    return range(begun, min(description["end"], (int(number) + 1) * description["rows_per_file"]))


def _stretches(description: Description, rows: range) -> list[tuple[int, int]]:
    """Where in their file these rows of each column stand, and how much that is, in bytes."""
    size, widths = description["rows_per_file"], list(description["columns"].values())
    first = rows.start % size
    return [(size * sum(widths[:i]) + first * width, len(rows) * width) for i, width in enumerate(widths)]


def _read(directory: Path, description: Description, number: str, rows: range) -> list[bytearray]:
    """These rows of each column."""
    columns = []
    with _path(directory, number).open("rb") as file:
        for offset, size in _stretches(description, rows):
            file.seek(offset)
            columns.append(bytearray(file.read(size)))
    return columns
