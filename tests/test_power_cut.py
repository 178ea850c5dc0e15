"""After a power cut what was promised is there: on a disk that forgets whatever was not synced, names included."""

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from killing import rows

from rl_runner import persistence
from rl_runner.config.schema import Config, load_config
from rl_runner.errors import Interrupted, UserError
from rl_runner.logger import Logger
from rl_runner.persistence import CHECKPOINT, CONFIG, METRICS, RESULT, STATUS, SWEEP, checkpoint, read_json, write_json
from rl_runner.persistence.checkpoint import Checkpoints, newest
from rl_runner.persistence.session import Saver
from rl_runner.replay.rowlog import RowLog
from rl_runner.run import run
from rl_runner.sweep import owned
from rl_runner.sweep.jobs import jobs_in

Tree = dict[str, Any]  # name: bytes of a file, or what is in a directory
Choice = Callable[[], bool]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads files by their descriptors in /proc")

STOP = 75
PLACE = Path("new", "made_by_hydra", "run")
WORDS = (
    "algo=dqn", "env=CartPole-v1", "tuned=none", "total_steps=120", "learning_starts=30", "checkpoint_every=30",
    "log_every=20", "eval_every=60", "eval_episodes=1", "final_eval_episodes=2", "network.hidden=[4]",
    "algo.batch_size=4", "replay.capacity=40",
)  # fmt: skip
MEMORIES: dict[str, Callable[[Random], Choice]] = {
    "no name that was not synced": lambda rng: lambda: False,
    "every name": lambda rng: lambda: True,
    "some directories' names": lambda rng: lambda: rng.random() < 0.5,
}


class Disk:
    """What has been synced below a directory, and every state in which a power cut could have left it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch):
        self.root = root
        self.promise: Any = None
        self.states: dict[str, tuple[Any, Tree]] = {}
        self._contents: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._held: list[int] = []  # descriptors that keep inode numbers from being used again
        self._rng = Random(0)
        for name in ("open", "pwrite", "fsync", "replace", "unlink", "mkdir"):
            patch.setattr(os, name, self._watched(name, getattr(os, name)))

    def cut(self) -> None:
        """Write down what a power cut at this instant would leave."""
        now: dict[int, dict[str, int]] = {}
        for path in [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]:
            now[path.stat().st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        for memory in MEMORIES.values():
            tree = self._tree(self.root.stat().st_ino, now, memory(self._rng))
            self.states[repr((self.promise, tree))] = (self.promise, tree)

    def close(self) -> None:
        for descriptor in self._held:
            os.close(descriptor)

    def _watched(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keys: Any) -> Any:
            result = operation(*args, **keys)
            if name in ("open", "fsync"):
                descriptor = result if name == "open" else args[0]
                self._held.append(os.dup(descriptor))
                if name == "fsync":
                    self._sync(descriptor)
            if name != "open":
                self.cut()
            return result

        return call

    def _sync(self, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            names = os.listdir(descriptor)
            self._names[status.st_ino] = {name: os.stat(name, dir_fd=descriptor).st_ino for name in names}
        else:
            self._contents[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _tree(self, inode: int, now: dict[int, dict[str, int]], remembers: Choice) -> Tree:
        names = now.get(inode, {}) if remembers() else self._names.get(inode, {})
        return {
            name: self._tree(child, now, remembers)
            if child in now or child in self._names
            else self._contents.get(child, b"")
            for name, child in names.items()
        }


class Inline:
    """An executor that does everything at once, so that operations have one order."""

    def __init__(self, *_: Any):
        pass

    def submit(self, function: Callable[..., Any], *args: Any) -> "Future[None]":
        done: Future[None] = Future()
        done.set_result(function(*args))
        return done


def write(tree: Tree, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        if isinstance(content, bytes):
            (directory / name).write_bytes(content)
        else:
            write(content, directory / name)


def record(config: Config, root: Path) -> list[tuple[Any, Tree]]:
    """A run that is stopped by a signal and resumed, on a disk whose power may be cut: promises and what was left."""
    after_step, commit = Saver.after_step, Checkpoints._commit
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch)

        def committed(checkpoints: Checkpoints, step: int, *args: Any) -> None:
            commit(checkpoints, step, *args)
            disk.promise = checkpoints.saved_step

        def stopped(saver: Saver) -> None:
            if saver._run.step == STOP and disk.promise != STOP:
                os.kill(os.getpid(), signal.SIGTERM)
            after_step(saver)

        patch.setattr(checkpoint, "ThreadPoolExecutor", Inline)
        patch.setattr(Checkpoints, "_commit", committed)
        patch.setattr(Saver, "after_step", stopped)
        (root / PLACE).mkdir(parents=True)
        try:
            with pytest.raises(Interrupted, match="all is saved"):
                run(config, root / PLACE)
            assert disk.promise == STOP
            run(config, root / PLACE)
            disk.promise = "finished"
            disk.cut()
        finally:
            disk.close()
    return list(disk.states.values())


def losses(states: list[tuple[Any, Tree]], scratch: Path) -> Iterator[tuple[Any, Path, str]]:
    """Each state as it was written out, and what of the promise is not in it."""
    for i, (promise, tree) in enumerate(states):
        write(tree, scratch / f"{i}")
        yield promise, scratch / f"{i}" / PLACE, missing(promise, scratch / f"{i}" / PLACE)


def missing(promise: Any, directory: Path) -> str:
    """What of a promise is not there, or stands in the way of going on."""
    try:
        saved = newest(directory / CHECKPOINT)
        if promise is None and saved is None:
            return ""
        load_config(directory / CONFIG)
    except UserError as error:
        return str(error)
    if saved is None:
        return "no checkpoint"
    step = 120 if promise == "finished" else promise or 0
    if saved.step < step:
        return f"step {step} was promised, {saved.step} is there"
    if (directory / METRICS).stat().st_size < saved.state["written"]["metrics"]:
        return "rows are missing"
    if promise == "finished" and read_json(directory / STATUS).get("state") != "finished":
        return "it is not finished"
    if promise == "finished" and not read_json(directory / RESULT):
        return "no result"
    return ""


def test_no_power_cut_takes_what_was_promised(configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(*WORDS)
    undisturbed = run(config, tmp_path / "undisturbed")
    states = record(config, tmp_path / "disk")
    promises = [promise for promise, _ in states]
    assert len(states) > 80
    assert set(promises) == {None, 30, 60, STOP, 90, 120, "finished"}
    found = list(losses(states, tmp_path / "left"))
    assert [loss for *_, loss in found if loss] == []
    for promise, directory, _ in found[:: len(found) // 8] + found[-1:]:
        assert run(config, directory)["params_sha256"] == undisturbed["params_sha256"], promise
        assert rows(directory) == rows(tmp_path / "undisturbed"), promise


@contextmanager
def without(owner: Any, name: str) -> Iterator[None]:
    """Let a function do nothing for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, lambda *_: None)
        yield


def replace_without(name: str, **keys: Any) -> Callable[..., None]:
    """`persistence.replace` that leaves out one kind of sync."""
    replace = persistence.replace

    def mutant(path: Path, content: bytes, sync: bool = True) -> None:
        if name == "directory":
            with without(persistence, "sync_directory"):
                replace(path, content, sync)
        else:
            replace(path, content, sync=False)
            persistence.sync_directory(path.parent)

    return mutant


SYNC = persistence.sync_directory
MUTANTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "replace does not sync the file": (persistence, "replace", replace_without("file")),
    "replace does not sync the directory": (persistence, "replace", replace_without("directory")),
    "no directory above the run's is synced": (
        persistence, "make_directory", lambda path: path.mkdir(parents=True, exist_ok=True),
    ),
    "a checkpoint does not sync the run's directory": (
        persistence, "sync_directory", lambda path: sys._getframe(1).f_code.co_name == "_commit" or SYNC(path),
    ),
    "the replay's rows are not synced": (RowLog, "sync", lambda log, description: None),
    "metrics.jsonl is not synced": (
        Logger, "sync",
        lambda log: {
            "metrics": log._path.stat().st_size,
            "sinks": {name: sink.sync(log._rows) for name, sink in log._sinks.items()},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_sync_left_out_is_found(
    mutant: str, configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, function = MUTANTS[mutant]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, function)
        states = record(configure(*WORDS), tmp_path / "disk")
    assert any(loss for *_, loss in losses(states, tmp_path / "left"))


def test_a_sweep_finds_all_its_jobs_after_a_power_cut(configure: Callable[..., Config], tmp_path: Path) -> None:
    (root := tmp_path / "disk").mkdir()
    sweep = root / "outputs" / "sweep"
    words = [["seed=0"], ["seed=1"], ["seed=2"]]
    jobs = jobs_in(sweep, words, [configure(*WORDS, *word) for word in words])
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(root, patch)
        with owned(sweep):
            for job in jobs:
                job.save()
            write_json(sweep / SWEEP, {"resumable": True})
            disk.promise = "all of it"
            disk.cut()
        disk.close()
    for promise, directory, _ in losses(list(disk.states.values()), tmp_path / "left"):
        left = directory.parents[len(PLACE.parts) - 1] / "outputs" / "sweep"
        if promise or (left / SWEEP).exists():
            assert [load_config(left / job.directory.name / CONFIG).seed for job in jobs] == [0, 1, 2]
