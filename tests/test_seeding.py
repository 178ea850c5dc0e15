"""Seeds: the ones that published runs were made with, and no two streams that are one."""

import pytest

from rl_runner.seeding import EPISODES, derive, generator


def test_published_runs_keep_their_seeds() -> None:
    assert derive(0, "init") == 3501147124
    assert derive(12, "behaviour") == 125425008
    assert [derive(3, "train", 0, episode) for episode in range(3)] == [2895785460, 1334942722, 1976580678]


def test_no_two_streams_of_a_run_are_one() -> None:
    names = ("init", "behaviour", "sampling", "smoothing", "replay", "warm-up", "critique")
    seeds = [derive(5, name) for name in names]
    seeds += [derive(5, name, env, episode) for name in EPISODES for env in range(4) for episode in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert derive(2**32 + 5, "init") != derive(5, "init")


@pytest.mark.parametrize("path", [("init", 0), ("init", 0, 0), ("train",), ("train", 0), ("train", 0, 0, 0)])
def test_a_path_that_zeros_would_confuse_is_refused(path: tuple[str, *tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=path[0]):
        derive(1, *path)


def test_a_set_of_environments_is_no_stream() -> None:
    with pytest.raises(ValueError, match="eval"):
        generator(1, "eval")
