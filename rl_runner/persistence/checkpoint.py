"""Checkpoints on disk: durable, free of pickled objects, the newest two of them, all read back checked; their content.

Checkpoint n is `n.pt`, the small state, the rows that the replay's log holds, and `n.json`, which describes both with
their checksums. It is written last: without it there is no checkpoint.

An agent either has `state_dict` and `load_state_dict`, or names its parts in `PARTS`: modules, optimizers, tensors,
random generators, counters, or anything that has those methods. Loading copies into the tensors that exist, so a
captured graph keeps seeing them.
"""

import io
import json
import sys
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rl_runner import persistence
from rl_runner.errors import RunFailed, UserError
from rl_runner.optim import parameters, traceable
from rl_runner.replay import rowlog
from rl_runner.replay.rowlog import RowLog

FORMAT = 1
KEPT = 2
ROWS = "replay"  # the directory of the rows' log, beside the checkpoints
SCALARS = (str, int, float, bool, type(None))


class Damaged(Exception):  # noqa: N818
    """A checkpoint is not as it was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was read back; `origin` is what the writer said of itself, `replay` the log's description."""

    number: int
    step: int
    origin: dict[str, Any]
    replay: dict[str, Any] | None
    state: dict[str, Any]


class Checkpoints:
    """Writes the checkpoints of one run, each in two halves.

    What could change is copied while training waits; bringing it to the disk is left to a thread. A failure (a full
    disk) is not fatal: the next checkpoint is another try.
    """

    problem: str | None = None  # why the newest state is not on the disk, and which one is

    def __init__(self, directory: Path, origin: dict[str, Any], log: RowLog | None, continued: Saved | None):
        self.directory = directory
        self._origin, self._log = origin, log
        self._kept = [] if continued is None else [(continued.number, continued.replay)]
        self._number = 1 + max((int(path.stem) for path in directory.glob("*.json")), default=0)
        self.saved_step = continued.step if continued else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint; `state` may change as soon as this returns."""
        self.wait()
        content = encode(state | ({"newest_rows": self._log.newest()} if self._log else {}))
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            rows = self._log.append() if self._log else None
        except OSError as error:
            self.failed(step, error)
            return
        self._writing = self._thread.submit(self._commit, step, content, rows)

    def wait(self) -> bool:
        """Wait for the last checkpoint to be on disk; whether it is."""
        if self._writing:
            self._writing.result()
            self._writing = None
        return self.problem is None

    def failed(self, step: int, error: OSError) -> None:
        """Take note that a checkpoint could not be written."""
        last = "there is none yet" if self.saved_step is None else f"the last one is of step {self.saved_step:,}"
        self.problem = f"checkpoint at step {step:,} failed ({error.strerror or error}), {last}"

    def _commit(self, step: int, content: bytes, rows: dict[str, Any] | None) -> None:
        number, place = self._number, self.directory / f"{self._number:06d}.json"
        manifest = {
            "format": FORMAT,
            "number": number,
            "step": step,
            "state_crc32": zlib.crc32(content),
            "replay": rows,
            "origin": self._origin,
        }
        try:
            if self._log and rows:
                self._log.sync(rows)
            persistence.replace(place.with_suffix(".pt"), content)
            persistence.sync_directory(self.directory.parent)  # to which this one and the run's other files may be new
            persistence.replace(place, seal(manifest))
            self._kept = [*self._kept, (number, rows)][-KEPT:]
            self._remove_others()
        except OSError as error:
            self.failed(step, error)
            return
        if self._log and rows:
            self._log.description = rows
        self._number, self.saved_step, self.problem = number + 1, step, None

    def _remove_others(self) -> None:
        names = {f"{number:06d}" for number, _ in self._kept}
        # Manifests first: one without its files would be taken for a damaged checkpoint.
        for path in sorted(self.directory.glob("*.*"), key=lambda path: path.suffix != ".json"):
            if path.stem not in names:
                path.unlink()
        rowlog.remove_unnamed(self.directory / ROWS, [rows for _, rows in self._kept if rows])


def log_of(replay: Any, directory: Path) -> RowLog | None:
    """The log of a replay's rows; None if it has no ring and so keeps everything in its state."""
    return RowLog(directory / ROWS, replay.ring) if hasattr(replay, "ring") else None


def newest(directory: Path, with_replay: bool = True) -> Saved | None:
    """The newest sound checkpoint; None if none was ever completed, UserError if none is sound."""
    damages = []
    for path in sorted(directory.glob("*.json"), reverse=True):
        try:
            saved = _read(path, with_replay)
        except Damaged as damage:
            damages.append(f"{path} is no use ({damage})")
            continue
        if damages:
            print("; ".join(damages) + f": going back to step {saved.step:,}", file=sys.stderr)
        return saved
    if damages:
        raise UserError("; ".join(damages) + ": there is no other checkpoint to continue from")
    return None


def encode(state: dict[str, Any]) -> bytes:
    """The state as bytes that `torch.load(weights_only=True)` reads; RunFailed if it holds other objects."""
    file = io.BytesIO()
    torch.save(_plain(state, "state"), file)
    return file.getvalue()


def seal(manifest: dict[str, Any]) -> bytes:
    """A manifest as JSON with its own checksum."""
    return json.dumps(manifest | {"crc32": _checksum(manifest)}, indent=1).encode()


def _read(path: Path, with_replay: bool) -> Saved:
    """The checkpoint that a manifest describes; Damaged if anything of it is not as it was written."""
    try:
        manifest = json.loads(path.read_bytes())
        checksum = manifest.pop("crc32")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged("it cannot be read") from error
    if checksum != _checksum(manifest):
        raise Damaged("its checksum is wrong")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path} has format {manifest['format']}, this rl_runner reads format {FORMAT}: "
            "use the version that wrote it, or a newer one"
        )
    number, rows, state_file = manifest["number"], manifest["replay"], path.with_suffix(".pt")
    if path.stem != f"{number:06d}":
        raise Damaged(f"it is checkpoint {number} under another name")
    try:
        content = state_file.read_bytes()
    except OSError as error:
        raise Damaged(f"{state_file.name}: {error.strerror}") from error
    if zlib.crc32(content) != manifest["state_crc32"]:
        raise Damaged(f"{state_file.name} is damaged")
    if with_replay and rows and (damage := rowlog.verify(path.parent / ROWS, rows)):
        raise Damaged(damage)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise Damaged(f"{state_file.name} holds other things than tensors and numbers") from error
    return Saved(number, manifest["step"], manifest["origin"], rows, state)


def _checksum(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest).encode())


def _plain(value: Any, path: str) -> Any:
    """A copy of the containers, with every tensor freed from a larger one that it is a part of."""
    match value:
        case dict():
            return {key: _plain(child, f"{path}.{key}") for key, child in value.items()}
        case list() | tuple():
            return [_plain(child, f"{path}.{i}") for i, child in enumerate(value)]
        case Tensor():
            tensor = value.detach()
            return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor
    if type(value) not in SCALARS:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise RunFailed(f"cannot be saved: {path} is a {kind}; use tensors, numbers, strings, lists and dicts")
    return value


def state_of(part: Any) -> Any:
    """The state of an object or of one of its parts; not copies."""
    match part:
        case int():
            return part
        case torch.Generator():
            return part.get_state()
        case Tensor():
            return part.detach()
        case Optimizer() if traceable(part):
            return [part.state[p] for p in parameters(part)]
    if hasattr(part, "PARTS"):
        return {name: state_of(getattr(part, name)) for name in part.PARTS}
    return part.state_dict()


def load_state(part: Any, state: Any) -> None:
    """Put a state back."""
    match part:
        case torch.Generator():
            part.set_state(state)
        case Tensor():
            part.detach().copy_(state)
        case Optimizer() if traceable(part):
            for p, saved in zip(parameters(part), state, strict=True):
                for key, value in saved.items():
                    part.state[p][key].copy_(value)
        case _ if hasattr(part, "PARTS"):
            for name in part.PARTS:
                if isinstance(getattr(part, name), int):
                    setattr(part, name, state.get(name, getattr(part, name)))  # one that is younger than the state
                else:
                    load_state(getattr(part, name), state[name])
        case _:
            part.load_state_dict(state)


def tensors(state: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """All tensors of nested dicts and lists, each with its path."""
    if isinstance(state, Tensor):
        return [(path, state)]
    children = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list) else ()
    return [found for key, child in children for found in tensors(child, f"{path}/{key}")]
