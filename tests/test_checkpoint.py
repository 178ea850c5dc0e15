"""A checkpoint is there as it was written or not at all: whatever dies, breaks, lies or runs full."""

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from rl_runner import accelerate
from rl_runner.config.schema import Config
from rl_runner.envs import Spec
from rl_runner.errors import RunFailed, UserError
from rl_runner.persistence import checkpoint
from rl_runner.persistence.checkpoint import Checkpoints, encode, log_of, newest, seal, state_of, tensors
from rl_runner.replay import UniformReplay
from rl_runner.replay.rowlog import RowLog, verify
from rl_runner.resume import check_finite, restore, snapshot_of
from rl_runner.run import build, prepare
from rl_runner.train import Run, train

OLDER, NEWER, LATER = 60, 120, 150


class Died(BaseException):
    """What a kill looks like from inside: nobody catches it, nothing is cleaned up."""


def digest(run: Run) -> str:
    """Of all that can influence how the run goes on."""
    state = snapshot_of(run)
    del state["training_seconds"], state["last_row"]
    content = hashlib.sha256(encode(state))
    ring = run.replay.ring
    positions = torch.arange(ring.span.start, ring.span.stop) % ring.rows
    for column in ring.columns.values():
        content.update(column[positions].numpy().tobytes())
    return content.hexdigest()


class Example:
    """A run with checkpoints at OLDER and NEWER in a directory, and itself stopped at LATER."""

    def __init__(self, config: Config, directory: Path):
        self.config, self.directory = config, directory
        self.run, self.origin = prepare(config, directory, None)
        log = log_of(self.run.replay, directory)
        checkpoints = Checkpoints(directory, self.origin, log, None)
        self.digests: dict[int, str] = {}

        def after_step() -> None:
            if self.run.step in (OLDER, NEWER, LATER):
                self.digests[self.run.step] = digest(self.run)
            if self.run.step in (OLDER, NEWER):
                checkpoints.save(self.run.step, snapshot_of(self.run))

        train(self.run, accelerate.build_update(self.run.agent, self.run.replay, self.run.averages, "eager"),
              lambda *row: None, after_step)  # fmt: skip
        assert checkpoints.wait()

    def continued(self, directory: Path) -> tuple[int, str]:
        """Step and digest of a new run that continues what a directory holds."""
        saved = newest(directory)
        assert saved is not None
        run, origin = prepare(self.config, directory, saved)
        restore(run, log_of(run.replay, directory), saved, origin)
        return run.step, digest(run)

    def save(self, directory: Path) -> bool:
        """Make a checkpoint of LATER in a copy of the directory."""
        saved = newest(directory)
        assert saved is not None
        log = log_of(self.run.replay, directory)
        assert log is not None
        log.description = saved.replay
        checkpoints = Checkpoints(directory, self.origin, log, saved)
        checkpoints.save(LATER, snapshot_of(self.run))
        return checkpoints.wait()


@pytest.fixture
def example(configure: Callable[..., Config], tmp_path: Path) -> Example:
    config = configure(
        "algo=dqn", "env=CartPole-v1", "num_envs=3", "tuned=none", f"total_steps={LATER}", "learning_starts=30",
        "network.hidden=[8]", "algo.batch_size=8", "replay=prioritized", "replay.capacity=60",
        "replay.deduplicate=true",
    )  # fmt: skip
    return Example(config, tmp_path / "checkpoint")


def test_everything_comes_back(example: Example) -> None:
    assert example.continued(example.directory) == (NEWER, example.digests[NEWER])
    assert len(set(example.digests.values())) == 3


def test_only_two_are_kept(example: Example) -> None:
    assert example.save(example.directory)
    assert sorted(path.name for path in example.directory.glob("*.*")) == [
        "000002.json", "000002.pt", "000003.json", "000003.pt",
    ]  # fmt: skip
    assert example.continued(example.directory) == (LATER, example.digests[LATER])


def test_death_at_every_operation(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die at the k-th write, fsync, rename and removal of one checkpoint, a write being half done."""
    outcomes, operations = [], set()
    for k in count(1):
        directory = tmp_path / f"death-{k}"
        shutil.copytree(example.directory, directory)
        with monkeypatch.context() as patch:
            died = _die_at(k, patch)
            try:
                example.save(directory)
            except Died:
                assert died
        step, continued = example.continued(directory)
        assert continued == example.digests[step]
        outcomes.append(step)
        operations.update(died)
        if not died:
            break
        assert example.save(directory), "the next checkpoint must land on what the dead one left"
        assert example.continued(directory) == (LATER, example.digests[LATER])
    assert outcomes[0] == NEWER
    assert outcomes[-1] == LATER
    assert outcomes == sorted(outcomes)
    assert operations == {"pwrite", "fsync", "replace", "unlink"}


def _die_at(k: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the k-th operation on files be the last one; its name is put into the list."""
    died: list[str] = []
    operations = count(1)

    def mortal(name: str) -> Callable[..., Any]:
        operation = getattr(os, name)

        def call(*args: Any) -> Any:
            if next(operations) < k:
                return operation(*args)
            if name == "pwrite":
                descriptor, data, offset = args
                operation(descriptor, data[: len(data) // 2], offset)
            died.append(name)
            raise Died

        return call

    for name in ("pwrite", "fsync", "replace", "unlink"):
        patch.setattr(os, name, mortal(name))
    return died


def test_damaged_files_are_never_believed(example: Example, tmp_path: Path) -> None:
    """Every file truncated, emptied, removed, swapped with each of its kind, and with bits flipped."""
    rng, refusals = Random(0), []
    names = [path.relative_to(example.directory) for path in example.directory.rglob("*.*") if path.is_file()]
    assert len(names) == 5
    for i, (name, damage) in enumerate(_damages(names, rng)):
        directory = tmp_path / f"damaged-{i}"
        shutil.copytree(example.directory, directory)
        damage(directory)
        try:
            step, continued = example.continued(directory)
        except UserError as error:
            refusals.append(str(error))
        else:
            assert continued == example.digests[step], name
    assert refusals
    assert all("damaged-" in refusal and "\n" not in refusal for refusal in refusals)


def _damages(names: list[Path], rng: Random) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    for name in names:
        yield name, lambda directory, name=name: os.truncate(directory / name, (directory / name).stat().st_size // 2)
        yield name, lambda directory, name=name: os.truncate(directory / name, 0)
        yield name, lambda directory, name=name: (directory / name).unlink()
        for _ in range(10):
            yield name, lambda directory, name=name: _flip_a_bit(directory / name, rng)
        for other in names:
            if name < other and name.suffix == other.suffix:
                yield name, lambda directory, name=name, other=other: _swap(directory / name, directory / other)


def _flip_a_bit(path: Path, rng: Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _swap(one: Path, other: Path) -> None:
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)


@pytest.mark.parametrize("name", ["000002.pt", "000002.json"])
def test_the_older_one_is_used_and_the_damage_named(
    name: str, example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(example.directory / name, 100)
    assert example.continued(example.directory) == (OLDER, example.digests[OLDER])
    (line,) = capsys.readouterr().err.splitlines()
    assert "000002.json is no use" in line
    assert f"going back to step {OLDER}" in line


def test_swapped_states_are_refused(example: Example) -> None:
    _swap(example.directory / "000001.pt", example.directory / "000002.pt")
    with pytest.raises(UserError, match="no other checkpoint"):
        newest(example.directory)


def test_a_whole_checkpoint_under_another_name_is_not_taken_for_it(example: Example) -> None:
    for suffix in (".pt", ".json"):
        shutil.copy(example.directory / f"000001{suffix}", example.directory / f"000003{suffix}")
    assert example.continued(example.directory) == (NEWER, example.digests[NEWER])


def test_a_newer_format_is_refused(example: Example) -> None:
    _reseal(example.directory / "000002.json", format=checkpoint.FORMAT + 1)
    with pytest.raises(UserError, match=f"has format {checkpoint.FORMAT + 1}"):
        newest(example.directory)


def test_a_pickle_bomb_does_not_go_off(example: Example, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save({"agent": Bomb(canary)}, example.directory / "000002.pt")
    content = (example.directory / "000002.pt").read_bytes()
    _reseal(example.directory / "000002.json", state_crc32=zlib.crc32(content))
    assert example.continued(example.directory) == (OLDER, example.digests[OLDER])
    assert not canary.exists()
    torch.load(example.directory / "000002.pt", weights_only=False)
    assert canary.exists(), "the bomb must be a real one"


class Bomb:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def _reseal(path: Path, **changes: Any) -> None:
    """Change a manifest as somebody would who knows how its checksum is made."""
    manifest = json.loads(path.read_bytes())
    del manifest["crc32"]
    path.write_bytes(seal(manifest | changes))


def test_other_objects_are_refused_when_saved() -> None:
    with pytest.raises(RunFailed, match=r"state\.agent\.scale is a numpy\.float64"):
        encode({"agent": {"scale": np.float64(1)}})


def test_a_part_of_a_large_tensor_is_saved_alone() -> None:
    assert len(encode({"rows": torch.zeros(1_000_000)[:10]})) < 10_000


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_row_log_restores_any_kept_window(deduplicate: bool, num_envs: int, tmp_path: Path) -> None:
    """At random intervals, some of them longer than the window, over many turns of the ring; the last two are kept."""
    rng = Random(num_envs)
    steps = _steps(num_envs, Random(1))
    replay = _replay(num_envs, deduplicate)
    log = RowLog(tmp_path, replay.ring)
    kept: list[tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor], dict[str, bytes]]] = []
    for interval in [0, 1, 1, *(rng.choice([2, 5, 100, 700, 2500]) for _ in range(25))]:
        for step in islice(steps, interval):
            replay.add(*step)
        description = log.append()
        log.sync(description)
        log.description = description
        state = torch.load(BytesIO(encode(replay.state_dict())), weights_only=True)
        kept = [*kept, (description, state, log.newest(), _window(replay))][-2:]
        for description, state, newest_rows, window in kept:
            assert verify(tmp_path, json.loads(json.dumps(description))) is None
            other = _replay(num_envs, deduplicate)
            other.load_state_dict(state)
            RowLog(tmp_path, other.ring).restore(description, newest_rows)
            assert _window(other) == window


def _replay(num_envs: int, deduplicate: bool) -> Any:
    spec = Spec((2,), torch.float32, None, 3, None, 1, None)
    return UniformReplay(
        spec=spec, num_envs=num_envs, gamma=0.9, total_steps=1, seed=0, device="cpu", directory=None, capacity=1500,
        deduplicate=deduplicate,
    )  # fmt: skip


def _steps(num_envs: int, rng: Random) -> Iterator[tuple[torch.Tensor, ...]]:
    for t in count():
        obs = torch.full((num_envs, 2), float(t))
        terminated = torch.tensor([rng.random() < 0.1 for _ in range(num_envs)])
        yield obs, torch.full((num_envs,), t % 3), obs[:, 0] / 2, terminated, torch.zeros_like(terminated), obs + 1


def _window(replay: Any) -> dict[str, bytes]:
    span = replay.ring.span
    positions = torch.arange(span.start, span.stop) % replay.ring.rows
    rows = {name: column[positions] for name, column in replay.ring.columns.items()}
    last = len(positions) - replay.ring.pending
    return {name: values[: None if name == "obs" else last].numpy().tobytes() for name, values in rows.items()}


@pytest.mark.parametrize(
    ("algo", "env", "culprit"),
    [
        ("sac", "Pendulum-v1", "log_alpha"),
        ("sac", "Pendulum-v1", "critic_optimizer.0.exp_avg"),
        ("td3", "Pendulum-v1", "target_actor.net.hidden.0.weight"),
        ("q_learning", "FrozenLake-v1", "table"),
    ],
)
def test_whatever_of_the_agents_state_is_not_finite_is_named(
    algo: str, env: str, culprit: str, configure: Callable[..., Config]
) -> None:
    run = build(configure(f"algo={algo}", f"env={env}", "tuned=none", "network.hidden=[4]"), None)
    check_finite(run)
    state = {path.strip("/").replace("/", "."): tensor for path, tensor in tensors(state_of(run.agent))}
    assert culprit in state, list(state)
    state[culprit].fill_(torch.nan)
    with pytest.raises(RunFailed, match=f"^{re.escape(culprit)} is not finite"):
        check_finite(run)
