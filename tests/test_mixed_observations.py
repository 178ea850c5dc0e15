"""An image and numbers in a Dict: the image is convolved, the numbers follow its features, in every part of a run."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from killing import rows
from torch.nn import functional as F

from rl_runner.config.schema import EnvConfig
from rl_runner.encoders import Auto, Conv, choice, image_of, pictured
from rl_runner.envs import Envs, Spec, spec_of
from rl_runner.errors import UserError

LIMIT = "env.max_episode_steps=12"
SMALL = (
    "tuned=none", "network.hidden=[16]", "algo.batch_size=8", "replay.capacity=200", "total_steps=180", "log_every=30",
    "learning_starts=30", "eval_every=0", "final_eval_episodes=2",
    LIMIT,
)  # fmt: skip
PLACE = spaces.Box(-9, 9, (2,))


class Map(gym.Env):
    """A place on a map of 8x8, with the map's 3 colours, beside where that is and how many steps were made."""

    def __init__(self, actions: str = "discrete", first: bool = False):
        shape = (3, 8, 8) if first else (8, 8, 3)
        self.first = first
        self.observation_space = spaces.Dict(
            {"at": PLACE, "map": spaces.Box(0, 10, shape, np.uint8), "steps": spaces.Discrete(20)}
        )
        self.action_space = spaces.Discrete(4) if actions == "discrete" else spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.integers(8, size=2), 0
        return self.seen(), {}

    def seen(self) -> dict[str, Any]:
        image = np.zeros((8, 8, 3), np.uint8)
        image[tuple(self.place)] = [10, 5, self.steps % 11]
        image = image.transpose(2, 0, 1) if self.first else image
        return {"at": self.place.astype(np.float32) - 3.5, "map": image, "steps": self.steps}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.place = (self.place + self.np_random.integers(-1, 2, size=2)).clip(0, 7)
        return self.seen(), float(self.place.sum()), bool((self.place == 0).all()), False, {}


gym.register("Map-v0", Map)


@pytest.fixture
def stream() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def seen_by(space: gym.Space, stack: int = 1) -> Spec:
    env: Any = gym.Env()
    env.observation_space, env.action_space = space, spaces.Discrete(2)
    return spec_of(env, stack)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("stack", [1, 3])
def test_features_by_hand(stack: int, first: bool, stream: torch.Generator) -> None:
    """The image is scaled by its own bounds and convolved as if it stood alone; all else follows."""
    envs = Envs(EnvConfig(id="Map-v0", kwargs={"first": first}, frame_stack=stack), 2, 0)
    for _ in range(stack):
        envs.step(torch.zeros(2, dtype=torch.int64))
    keys = {"channels": [4], "kernels": [3], "strides": [2]}
    encoder = Conv(spec=envs.spec, generator=stream, **keys)
    shape = (3, 8, 8) if first else (8, 8, 3)
    obs = envs.obs.reshape(2, stack, 2 + 192 + 20)  # the place, the map, the number of steps as one of 20
    images = obs[:, :, 2:194].reshape(2, stack, *shape)
    images = (images if first else images.movedim(-1, -3)).flatten(1, 2) / 10
    layer = encoder.layers[0]
    numbers = torch.cat([obs[:, :, :2].flatten(1), obs[:, :, 194:].flatten(1)], dim=1)
    want = torch.cat([F.relu(F.conv2d(images, layer.weight, layer.bias, stride=2)).flatten(1), numbers], dim=1)
    assert torch.equal(encoder(envs.obs), want)
    assert encoder.n_out == want.shape[1] == 4 * 3 * 3 + 22 * stack
    assert images.max() == 1.0
    assert numbers.abs().max() > 1.0


def test_bytes_beside_an_image_are_numbers_too(stream: torch.Generator) -> None:
    """Where all parts are of bytes, so is what the replay holds, and only the image is scaled."""
    space = spaces.Dict({"a": spaces.Box(0, 1, (7, 7), bool), "b": spaces.Box(0, 200, (2,), np.uint8)})
    spec = seen_by(space)
    assert spec.obs_dtype == torch.uint8
    encoder = Conv(spec=spec, generator=stream, channels=[1], kernels=[7], strides=[1])
    torch.nn.init.ones_(encoder.layers[0].weight)
    torch.nn.init.zeros_(encoder.layers[0].bias)
    obs = torch.cat([torch.ones(1, 49, dtype=torch.uint8), torch.tensor([[3, 200]], dtype=torch.uint8)], dim=1)
    assert encoder(obs).tolist() == [[49.0, 3.0, 200.0]]


def test_the_choice_is_the_images() -> None:
    large, small = spaces.Box(0, 255, (40, 60, 3), np.uint8), spaces.Box(0, 1, (7, 7), bool)
    table = spaces.Box(0, 255, (6, 9), np.uint8)
    assert choice(seen_by(spaces.Dict({"x": PLACE, "y": large}))) == "nature_cnn"
    assert choice(seen_by(spaces.Dict({"x": PLACE, "y": small}), 4)) == "minatar_cnn"
    assert choice(seen_by(spaces.Dict({"x": PLACE, "y": table}))) == "flat"
    assert choice(seen_by(spaces.Dict({"x": PLACE}))) == "flat"
    assert image_of(pictured(seen_by(spaces.Dict({"x": PLACE, "y": large}), 2))) == (6, 40, 60)
    two = seen_by(spaces.Dict({"x": large, "y": PLACE, "z": small}))
    for read in (choice, lambda spec: Auto(spec=spec)):
        with pytest.raises(UserError, match=r"read one image, there are x and z: leave some out by env.observation_"):
            read(two)


@pytest.mark.parametrize("words", [("algo=ddqn", "network=dueling"), ("algo=sac", "+env.kwargs.actions=continuous")])
def test_a_run_learns_evaluates_and_exports(words: tuple[str, ...], rl_runner: Any, tmp_path: Path) -> None:
    place = f"hydra.run.dir={tmp_path}"
    ended = rl_runner("plugins=[test_mixed_observations]", "env=Map-v0", *words, *SMALL, place)
    assert ended.code == 0, ended.err
    said = " ".join(" ".join(ended.out).split())
    assert "observations [214] float32" in said
    assert "encoder: minatar_cnn, an image of 8x8 with 3 channels beside 22 numbers becomes 598 features" in said
    for command in (["eval", "--episodes", "2"], ["export"]):
        ended = rl_runner(*command, str(tmp_path), "plugins=[test_mixed_observations]")
        assert ended.code == 0, ended.err


REPLAYS = {
    "deduplicated": ("replay.deduplicate=true",),
    "prioritized": ("replay=prioritized", "replay.n_step=3"),
    "both": ("replay=prioritized", "replay.n_step=3", "replay.deduplicate=true"),
}


def test_a_replay_that_stores_each_frame_once_gives_the_same_run(rl_runner: Any, tmp_path: Path) -> None:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, words in ({"uniform": ()} | REPLAYS).items():
        where = f"hydra.run.dir={tmp_path / name}"
        ended = rl_runner(
            "plugins=[test_mixed_observations]", "env=Map-v0", "algo=dqn", "env.frame_stack=2", *SMALL, *words, where
        )
        assert ended.code == 0, ended.err
        found[name] = rows(tmp_path / name)
    assert found["uniform"] == found["deduplicated"]
    assert found["prioritized"] == found["both"] != found["uniform"]
    assert len(found["both"]) == 6


@pytest.mark.slow
def test_one_graph_learns_what_eager_does(rl_runner: Any, tmp_path: Path) -> None:
    words = ("env=Map-v0", "algo=td3", "+env.kwargs.actions=continuous", "env.frame_stack=2", "total_steps=70")
    for mode in ("eager", "compile"):
        place = (f"accelerate={mode}", f"hydra.run.dir={tmp_path / mode}")
        assert rl_runner("plugins=[test_mixed_observations]", *SMALL, *words, "log_every=60", *place).code == 0
    one, other = (rows(tmp_path / mode)[0] for mode in ("eager", "compile"))
    assert one.keys() == other.keys() > {"losses/td_loss", "losses/actor_loss"}
    for tag, value in one.items():
        assert other[tag] == pytest.approx(value, rel=1e-3, abs=1e-4), tag


def test_statistics_are_for_numbers_alone(rl_runner: Any) -> None:
    words = ("plugins=[test_mixed_observations]", "env=Map-v0", "algo=dqn", "normalize_observations=true", LIMIT)
    line = "normalize_observations: would scale the image map with the numbers beside it: leave it out, or use"
    ended = rl_runner(*words, "dry_run=true")
    assert (ended.code, ended.err) == (2, [f"{line} encoder=flat"])
    assert rl_runner(*words, "encoder=flat", "dry_run=true").code == 0
