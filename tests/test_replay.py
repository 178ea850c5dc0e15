"""Replay: every transition that can be drawn equals the one a plain list would give, bit for bit."""

import copy
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from scipy import stats
from torch import Tensor

from rl_runner.config.targets import read_group
from rl_runner.envs import Spec
from rl_runner.errors import UserError
from rl_runner.replay import Batch, LastReplay, PrioritizedReplay, UniformReplay, check_memory

Row = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]  # obs, action, reward, terminated, truncated, next_obs

GAMMA = 0.9
VECTOR = Spec((3,), torch.float32, None, None, 2, 1, None)
STACKED = Spec((4, 2, 3), torch.uint8, None, 6, None, 4, None)
HALF_CHEETAH = Spec((17,), torch.float32, None, None, 6, 1, 1000)
ATARI = Spec((4, 84, 84), torch.uint8, None, 18, None, 4, None)
PER = {"alpha": 0.7, "beta": 0.4, "beta_end": 1.0, "epsilon": 1e-3}
ENDINGS = {"terminating": (1.0, 0.0), "truncating": (0.0, 1.0), "both": (0.5, 0.5)}


def make(kind: str, spec: Spec = VECTOR, num_envs: int = 1, **keys: Any) -> Any:
    wired = {"spec": spec, "num_envs": num_envs, "gamma": GAMMA, "total_steps": 1000, "seed": 3}
    wired |= {"device": "cpu", "directory": None, "capacity": 40}
    return PrioritizedReplay(**wired | PER | keys) if kind == "prioritized" else UniformReplay(**wired | keys)


def experience(spec: Spec, num_envs: int, ending: str, *, counting: bool = False, seed: int = 0) -> Iterator[Row]:
    """Endless steps of vector environments: random episodes, or ones that count (environment, episode, time)."""
    random = np.random.default_rng(seed)
    may_terminate, may_truncate = ENDINGS[ending]
    frame_shape = spec.obs_shape[1:] if spec.frame_stack > 1 else spec.obs_shape
    episode, time = np.zeros(num_envs, int), np.zeros(num_envs, int)
    length = random.integers(1, 9, num_envs)

    def frame(i: int) -> np.ndarray:
        if counting:
            return np.resize([i, episode[i], time[i]], frame_shape)
        return np.asarray(random.normal(size=frame_shape) * 100).astype(
            np.uint8 if spec.frame_stack > 1 else np.float32
        )

    def observe(stacks: list[list[np.ndarray]]) -> Tensor:
        stacked = np.stack([np.stack(stack) if spec.frame_stack > 1 else stack[-1] for stack in stacks])
        return torch.as_tensor(stacked).to(spec.obs_dtype)

    stacks = [[frame(i)] * spec.frame_stack for i in range(num_envs)]
    while True:
        obs = observe(stacks)
        time += 1
        stacks = [[*stack[1:], frame(i)] for i, stack in enumerate(stacks)]
        ended = time >= length
        terminated = ended & (random.random(num_envs) < may_terminate)
        truncated = ended & ~terminated if may_truncate else np.zeros(num_envs, bool)
        reward = time.astype(np.float32) if counting else random.normal(size=num_envs).astype(np.float32)
        if spec.action_dim is None:
            action = random.integers(0, spec.num_actions or 1, num_envs)
        else:
            action = random.uniform(-1, 1, (num_envs, spec.action_dim)).astype(np.float32)
        numbers = (torch.as_tensor(column) for column in (action, reward, terminated, truncated))
        yield obs, *numbers, observe(stacks)  # type: ignore[misc]
        for i in np.flatnonzero(terminated | truncated):
            episode[i], time[i], length[i] = episode[i] + 1, 0, random.integers(1, 9)
            stacks[i] = [frame(i)] * spec.frame_stack


class ListReplay:
    """The reference: all rows in a list, and loops."""

    def __init__(self, num_envs: int, n_step: int):
        self.num_envs, self.n_step = num_envs, n_step
        self.rows: list[tuple[Tensor, ...]] = []

    def add(self, *columns: Tensor) -> None:
        self.rows += [tuple(column[i].clone() for column in columns) for i in range(self.num_envs)]

    def transition(self, first: int) -> tuple[Tensor, ...]:
        total = np.float32(0)
        for k, row in enumerate(range(first, len(self.rows), self.num_envs)):
            _, _, reward, terminated, truncated, next_obs = self.rows[row]
            total += np.float32(GAMMA**k) * np.float32(reward.item())
            if terminated or truncated or k + 1 == self.n_step:
                break
        discount = np.float32(0 if terminated else GAMMA ** (k + 1))
        obs, action, *_ = self.rows[first]
        return obs, action, torch.tensor(total), torch.tensor(discount), next_obs

    def window(self, capacity: int, ring_rows: int) -> tuple[list[int], dict[int, int]]:
        """The rows that can be drawn, and which of them lies at which position of the ring."""
        rows = list(range(max(0, len(self.rows) - capacity), len(self.rows)))
        return rows, {row % ring_rows: i for i, row in enumerate(rows)}


def assert_true(batch: Batch, reference: ListReplay, replay: Any) -> None:
    """All of a batch equals the reference, and with so many draws it covers the window."""
    rows, place = reference.window(replay.ring.window, replay.ring.rows)
    expected = [torch.stack(column) for column in zip(*map(reference.transition, rows), strict=True)]
    order = torch.tensor([place[position] for position in batch.index.tolist()])
    for name, got, want in zip(Batch._fields, batch, expected, strict=False):
        assert got.dtype == want.dtype, name
        assert torch.equal(got, want[order]), name
    assert len(set(order.tolist())) > 0.9 * len(rows)


def fill(replay: Any, steps: Iterator[Row], count: int, *others: Any) -> None:
    for row in islice(steps, count):
        for target in (replay, *others):
            target.add(*row)


@pytest.mark.parametrize("counting", [True, False], ids=["counting", "random"])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
@pytest.mark.parametrize("n_step", [1, 3, 10])
@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_every_transition_is_the_true_one(
    kind: str, n_step: int, deduplicate: bool, num_envs: int, ending: str, counting: bool
) -> None:
    replay = make(kind, num_envs=num_envs, n_step=n_step, deduplicate=deduplicate)
    reference = ListReplay(num_envs, n_step)
    steps = experience(VECTOR, num_envs, ending, counting=counting)
    for count in (1, 4, 30, 40, 3, 50, 1, 70):  # the ring's edge lies after 40 to 44 rows
        fill(replay, steps, count, reference)
        assert_true(replay.gather(*replay.draw(1000, step=0)), reference, replay)
    assert replay.ring.head > 3 * replay.ring.rows
    assert replay.size == 40


@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("n_step", [1, 5])
def test_stacks_of_frames_are_rebuilt(n_step: int, num_envs: int, deduplicate: bool) -> None:
    replay = make("uniform", STACKED, num_envs, n_step=n_step, deduplicate=deduplicate)
    reference = ListReplay(num_envs, n_step)
    steps = experience(STACKED, num_envs, "both")
    for count in (1, 2, 5, 50, 7, 30, 80):
        fill(replay, steps, count, reference)
        batch = replay.gather(*replay.draw(1000, step=0))
        assert batch.obs.dtype == torch.uint8
        assert_true(batch, reference, replay)
    assert replay.ring.head > replay.ring.rows


@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
def test_discrete_observations_are_int64(deduplicate: bool) -> None:
    spec = Spec((), torch.int64, 500, 6, None, 1, None)
    replay, reference = make("uniform", spec, deduplicate=deduplicate), ListReplay(1, 1)
    fill(replay, experience(spec, 1, "both"), 50, reference)
    assert_true(replay.gather(*replay.draw(1000, step=0)), reference, replay)


@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
def test_a_capacity_that_is_no_multiple_of_the_environments_is_rounded_up(deduplicate: bool) -> None:
    replay, reference = make("uniform", num_envs=3, deduplicate=deduplicate), ListReplay(3, 1)
    fill(replay, experience(VECTOR, 3, "both"), 100, reference)
    assert replay.size == 42
    assert_true(replay.gather(*replay.draw(1000, step=0)), reference, replay)


@pytest.mark.parametrize("deduplicate", [False, True], ids=["plain", "deduplicated"])
def test_cut_truncates_running_episodes(deduplicate: bool) -> None:
    replay, reference = make("uniform", num_envs=2, n_step=4, deduplicate=deduplicate), ListReplay(2, 4)
    replay.cut()
    fill(replay, experience(VECTOR, 2, "both", seed=1), 20, reference)
    replay.cut()
    for i in (-2, -1):
        obs, action, reward, terminated, _, next_obs = reference.rows[i]
        reference.rows[i] = (obs, action, reward, terminated, ~terminated, next_obs)
    fill(replay, experience(VECTOR, 2, "both", seed=2), 10, reference)
    assert_true(replay.gather(*replay.draw(1000, step=0)), reference, replay)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_on_cuda(kind: str) -> None:
    replay, reference = make(kind, device="cuda", n_step=3, deduplicate=True), ListReplay(1, 3)
    fill(replay, experience(VECTOR, 1, "both"), 1500, reference)
    batch = replay.gather(*replay.draw(1000, step=0))
    replay.prioritize(batch.index, batch.reward)
    assert all(column.is_cuda for column in batch)
    assert_true(Batch(*(column.cpu() for column in batch)), reference, replay)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_step", 0),
        ("n_step", 1.5),
        ("capacity", 0),
        ("alpha", 2),
        ("alpha", -0.1),
        ("beta", 1.1),
        ("beta_end", -1),
        ("epsilon", 0),
        ("storage", "disk"),
        ("deduplicate", "perhaps"),
    ],
)
def test_bad_values_are_refused_in_one_line(key: str, value: object) -> None:
    keys = {"_target_": "rl_runner.replay.PrioritizedReplay", "capacity": 100} | PER
    assert read_group("replay", keys, ())[2] == []
    problems = read_group("replay", keys | {key: value}, ())[2]
    assert len(problems) == 1
    assert f"replay.{key}" in problems[0]
    assert "\n" not in problems[0]


def prioritized_with_known_leaves(capacity: int = 300, **keys: Any) -> tuple[PrioritizedReplay, Tensor]:
    """A full replay behind its first wrap-around, and p^α by ring position, 0 outside the window."""
    replay = make("prioritized", capacity=capacity, **keys)
    fill(replay, experience(VECTOR, 1, "both"), 700)
    live = torch.arange(replay.ring.window_start, replay.ring.head) % replay.ring.rows
    td_error = torch.randn(capacity, generator=torch.Generator().manual_seed(0)) * 3
    replay.prioritize(live, td_error)
    leaves = torch.zeros(replay.ring.rows, dtype=torch.float64)
    alpha = keys.get("alpha", PER["alpha"])
    leaves[live] = (td_error.double().abs() + PER["epsilon"]) ** alpha
    return replay, leaves


def test_frequencies_are_proportional_to_priorities() -> None:
    replay, leaves = prioritized_with_known_leaves()
    drawn = torch.cat([replay.gather(*replay.draw(50, 0)).index for _ in range(2000)])
    counts = torch.bincount(drawn, minlength=len(leaves))
    assert not counts[leaves == 0].any()
    live = leaves > 0
    expected = (leaves / leaves.sum())[live] * len(drawn)
    assert stats.chisquare(counts[live].numpy(), expected.numpy()).pvalue > 0.01
    assert stats.chisquare(counts[live].numpy(), np.full(live.sum(), len(drawn) / 300)).pvalue < 1e-6


def test_alpha_zero_draws_uniformly() -> None:
    replay, _ = prioritized_with_known_leaves(alpha=0.0)
    batches = [replay.gather(*replay.draw(50, 0)) for _ in range(2000)]
    counts = torch.bincount(torch.cat([batch.index for batch in batches]))
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > 0.01
    assert (counts > 0).sum() == 300
    assert all((batch.weight == 1).all() for batch in batches)


@pytest.mark.parametrize("step", [0, 500, 1000, 2000])
def test_weights_follow_the_formula(step: int) -> None:
    replay, leaves = prioritized_with_known_leaves()
    batch = replay.gather(*replay.draw(64, step))
    beta = {0: 0.4, 500: 0.7}.get(step, 1.0)
    live = leaves > 0
    probability = leaves / leaves.sum()
    weight = (live.sum() * probability) ** -beta
    torch.testing.assert_close(batch.weight.double(), weight[batch.index] / weight[live].max(), rtol=1e-5, atol=0)


def test_new_transitions_have_the_largest_priority_so_far() -> None:
    replay, leaves = prioritized_with_known_leaves()
    largest, head = leaves.max(), replay.ring.head
    fill(replay, experience(VECTOR, 1, "both"), 200)
    replay.prioritize(torch.tensor([head % replay.ring.rows]), torch.tensor([1e-2]))
    counts = torch.zeros(replay.ring.rows)
    for _ in range(1000):
        counts += torch.bincount(replay.gather(*replay.draw(64, 0)).index, minlength=len(counts))
    live = torch.arange(replay.ring.window_start, replay.ring.head) % len(counts)
    updated = torch.tensor([(1e-2 + PER["epsilon"]) ** PER["alpha"]])
    expected = torch.cat([leaves[live[:100]], updated, largest.repeat(199)])
    expected *= 64000 / expected.sum()
    assert stats.chisquare(counts[live].numpy(), expected.numpy()).pvalue > 0.01


def test_of_a_row_drawn_twice_the_later_priority_counts() -> None:
    replay, _ = prioritized_with_known_leaves(alpha=1.0)
    row = torch.tensor([replay.ring.window_start % replay.ring.rows])
    live = torch.arange(replay.ring.window_start, replay.ring.head) % replay.ring.rows
    replay.prioritize(live, torch.ones(300))
    replay.prioritize(row.repeat(2), torch.tensor([4.0, 9.0]))
    beta_one = replay.gather(torch.rand(5000, dtype=torch.float64), torch.tensor(1.0))
    assert beta_one.weight[beta_one.index == row].allclose(torch.tensor(1.001 / 9.001))


def tabular_q(kind: str, **keys: Any) -> Tensor:
    """Q of a random MDP with rare rewards after averaged TD(0) from a fixed data set, [5, 2]."""
    random = np.random.default_rng(7)
    kernel = random.dirichlet(np.ones(5), (5, 2))
    spec = Spec((), torch.int64, 5, 2, None, 1, None)
    replay = make(kind, spec, capacity=2000, **keys)
    state = 0
    for _ in range(2000):
        action, following = random.integers(2), 0
        following = random.choice(5, p=kernel[state, action])
        reward = float(random.random() < 0.1)
        row = ([state], [action], [reward], [False], [False], [following])
        replay.add(*(torch.tensor(column) for column in row))
        state = following
    q, mean = torch.zeros(5, 2), torch.zeros(5, 2)
    for update in range(1500):
        batch = replay.gather(*replay.draw(128, step=0))
        target = batch.reward + batch.discount * q[batch.next_obs].mean(dim=1)
        td_error = target - q[batch.obs, batch.action]
        step = torch.zeros(5, 2).index_put((batch.obs, batch.action), batch.weight * td_error, accumulate=True)
        q = q + 2 / 128 * step / batch.weight.mean()
        replay.prioritize(batch.index, td_error)
        if update >= 500:
            mean += q / 1000
    return mean


def test_beta_one_learns_what_uniform_learns() -> None:
    uniform = tabular_q("uniform")
    corrected = tabular_q("prioritized", beta=1.0)
    uncorrected = tabular_q("prioritized", beta=0.0, beta_end=0.0)
    assert (corrected - uniform).abs().max() < 0.05
    assert (uncorrected - uniform).abs().max() > 0.3


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """All tensors that an object of this package holds."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value)
    elif type(thing).__module__.startswith("rl_runner.replay"):
        yield from tensors_in(vars(thing))


def bytes_held(replay: Any) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors_in(replay)}.values())


def test_a_full_deduplicated_replay_of_half_cheetah_takes_at_most_60_percent() -> None:
    replay = make("uniform", HALF_CHEETAH, 1000, capacity=1_000_000, deduplicate=True)
    obs, action = torch.zeros(1000, 17), torch.zeros(1000, 6)
    for time in range(1, 2101):
        truncated = torch.full((1000,), time % 1000 == 0)
        replay.add(obs, action, torch.zeros(1000), torch.zeros(1000, dtype=torch.bool), truncated, obs)
    plain = UniformReplay.nbytes(HALF_CHEETAH, 1000, capacity=1_000_000)
    assert replay.size == 1_000_000
    assert bytes_held(replay) <= 0.60 * plain


def test_single_frames_take_at_most_15_percent_of_both_stacks() -> None:
    once = UniformReplay.nbytes(ATARI, 1, capacity=1_000_000, deduplicate=True)
    twice = UniformReplay.nbytes(ATARI, 1, capacity=1_000_000)
    assert once <= 0.15 * twice
    assert once <= 7.2 * 2**30


@pytest.mark.parametrize("deduplicate", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_bytes_are_known_before_they_are_taken(kind: str, deduplicate: bool) -> None:
    replay = make(kind, STACKED, 3, capacity=5000, deduplicate=deduplicate)
    known = type(replay).nbytes(STACKED, 3, capacity=5000, deduplicate=deduplicate)
    assert known <= bytes_held(replay) <= known + 200  # a few scalars


def test_a_replay_that_does_not_fit_is_refused_with_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Memory", (), {"available": 10**9})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    where: dict[str, Any] = {"device": "cpu", "directory": None, "total_steps": 1}
    with pytest.raises(UserError, match=r"^replay.capacity=1000000 needs 7\.\d\d GB, 1\.00 GB are free") as refused:
        check_memory(UniformReplay, ATARI, 1, capacity=1_000_000, deduplicate=True, **where)
    fits = int(str(refused.value).split("replay.capacity=")[-1].split()[0])
    check_memory(UniformReplay, ATARI, 1, capacity=fits, deduplicate=True, **where)
    with pytest.raises(UserError):
        check_memory(UniformReplay, ATARI, 1, capacity=int(1.1 * fits), deduplicate=True, **where)
    assert "\n" not in str(refused.value)


def test_too_little_disk_for_checkpoints_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = type("Usage", (), {"free": 10**9})
    monkeypatch.setattr(shutil, "disk_usage", lambda place: disk)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**12}))
    many: dict[str, Any] = {"device": "cpu", "directory": tmp_path / "run", "deduplicate": True}
    check_memory(UniformReplay, ATARI, 1, capacity=1_000_000, total_steps=100_000, **many)
    line = r"^replay.capacity=1000000 needs 7\.\d\d GB of files, 1\.00 GB are free on the disk of \S*run: replay\.cap"
    with pytest.raises(UserError, match=line):
        check_memory(UniformReplay, ATARI, 1, capacity=1_000_000, total_steps=1_000_000, **many)
    with pytest.raises(UserError) as refused:
        check_memory(UniformReplay, ATARI, 1, capacity=100_000, total_steps=1_000_000, storage="memmap", **many)
    fits = int(str(refused.value).split("replay.capacity=")[-1].split()[0])
    assert 60_000 < fits < 80_000
    check_memory(UniformReplay, ATARI, 1, capacity=fits, total_steps=1_000_000, storage="memmap", **many)
    # What an interrupted run has written already is not needed again.
    rows = tmp_path / "run" / "checkpoint" / "replay" / "000000.rows"
    rows.parent.mkdir(parents=True)
    with rows.open("wb") as file:
        file.truncate(7 * 10**9)
    check_memory(UniformReplay, ATARI, 1, capacity=1_000_000, total_steps=1_000_000, **many)


@pytest.mark.parametrize("keys", [{}, {"deduplicate": True, "n_step": 3}], ids=["plain", "deduplicated"])
def test_memmap_equals_memory(tmp_path: Any, keys: dict[str, Any]) -> None:
    memory = make("uniform", STACKED, 2, **keys)
    mapped = make("uniform", STACKED, 2, storage="memmap", directory=tmp_path, **keys)
    fill(memory, experience(STACKED, 2, "both"), 900, mapped)
    for got, want in zip(mapped.gather(*mapped.draw(256, 0)), memory.gather(*memory.draw(256, 0)), strict=True):
        assert torch.equal(got, want)
    for name, column in mapped.ring.columns.items():
        assert column.untyped_storage().filename == str(tmp_path / "replay" / f"{name}.bin")
    assert not list((tmp_path / "replay").iterdir())  # nobody but this process needs them


def test_memmap_is_refused_on_cuda(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="storage=memory"):
        make("uniform", storage="memmap", directory=tmp_path, device="cuda")


@pytest.mark.parametrize("spec", [VECTOR, STACKED], ids=["vector", "stacked"])
@pytest.mark.parametrize("keys", [{}, {"deduplicate": True, "n_step": 3}], ids=["plain", "deduplicated"])
@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_restored_it_draws_the_same_bits(kind: str, keys: dict[str, Any], spec: Spec) -> None:
    replay, steps = make(kind, spec, 2, **keys), experience(spec, 2, "both")

    def learn(target: Any, row: Row) -> Batch:
        target.add(*row)
        batch = target.gather(*target.draw(64, step=0))
        target.prioritize(batch.index, batch.reward)
        return batch

    for count in (3, 8, 40, 33):  # before the ring is full, and behind its edge
        for row in islice(steps, count):
            learn(replay, row)
        restored = make(kind, spec, 2, **keys)
        positions = torch.tensor(replay.ring.span) % replay.ring.rows
        for name, column in restored.ring.columns.items():
            column[positions] = replay.ring.columns[name][positions]
        restored.load_state_dict(copy.deepcopy(replay.state_dict()))
        assert restored.size == replay.size
        for row in islice(steps, 50):
            for name, got, want in zip(Batch._fields, learn(restored, row), learn(replay, row), strict=True):
                assert torch.equal(got, want), name


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
def test_compiled_it_is_the_same_and_is_compiled_once(kind: str) -> None:
    keys: dict[str, Any] = {"deduplicate": True, "n_step": 3, "capacity": 500}
    eager, compiled = make(kind, STACKED, 2, **keys), make(kind, STACKED, 2, **keys)

    def learn_with(replay: Any) -> Callable[..., Batch]:
        def learn(*drawn: Tensor) -> Batch:
            batch = replay.gather(*drawn)
            replay.prioritize(batch.index, batch.reward * 2)
            return batch

        return learn

    learn, steps = torch.compile(learn_with(compiled), fullgraph=True, dynamic=False), experience(STACKED, 2, "both")
    fill(eager, steps, 2, compiled)
    learn(*compiled.draw(32, 0)), learn_with(eager)(*eager.draw(32, 0))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for count in (1, 1, 20, 300, 400):  # the table of final observations grows, and the ring wraps around
            fill(eager, steps, count, compiled)
            got, want = learn(*compiled.draw(32, 0)), learn_with(eager)(*eager.draw(32, 0))
            for name, a, b in zip(Batch._fields, got, want, strict=True):
                assert torch.allclose(a, b, rtol=1e-6, atol=0) if name == "weight" else torch.equal(a, b), name
    assert compiled.ring.head > compiled.ring.rows
    if kind == "prioritized":
        for name, tensor in eager.state_dict()["priorities"].items():
            torch.testing.assert_close(compiled.state_dict()["priorities"][name], tensor)


def test_last_gives_the_step_just_added() -> None:
    spec = Spec((), torch.int64, 9, 2, None, 1, None)
    replay = LastReplay(gamma=GAMMA)
    assert replay.size == 0
    for row in islice(experience(spec, 2, "both"), 20):
        replay.add(*row)
        batch = replay.gather(*replay.draw(batch_size=64, step=0))
        obs, action, reward, terminated, _, next_obs = row
        assert replay.size == 2
        for got, want in zip(batch, (obs, action, reward, GAMMA * ~terminated, next_obs, torch.ones(2)), strict=False):
            assert torch.equal(got, want)


def test_the_smallest_case_of_one_row_and_one_draw() -> None:
    for kind in ("uniform", "prioritized"):
        replay, reference = make(kind, capacity=1, n_step=3, deduplicate=True), ListReplay(1, 3)
        for row in islice(experience(VECTOR, 1, "both"), 30):
            replay.add(*row)
            reference.add(*row)
            assert_true(replay.gather(*replay.draw(1, 0)), reference, replay)
