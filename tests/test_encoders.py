"""Images: which observations are some, what becomes of their values and axes, who trains the encoder."""

import functools
from copy import deepcopy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from killing import rows
from pixels import Dot
from torch.nn import functional as F

from rl_runner.accelerate import build_update
from rl_runner.config.schema import EnvConfig, load_config
from rl_runner.encoders import Auto, Conv, Flat, choice, convolved, image_of, smallest_side, values_of
from rl_runner.envs import Spec
from rl_runner.envs.seeded import SeededEnv
from rl_runner.envs.spaces import reader
from rl_runner.errors import UserError
from rl_runner.logger import Averages
from rl_runner.persistence import read_json
from rl_runner.persistence.checkpoint import load_state, state_of, tensors
from rl_runner.replay import UniformReplay
from rl_runner.replay.ring import Batch
from rl_runner.seeding import derive

MINATAR = functools.partial(Conv, channels=[16], kernels=[3], strides=[1])


def spec(shape, dtype=torch.uint8, stack=1, **bounds):
    return Spec(tuple(shape), dtype, None, 3, None, stack, None, **bounds)


@pytest.mark.parametrize(
    ("seen", "image", "name"),
    [
        (spec([84, 84, 3]), (3, 84, 84), "nature_cnn"),
        (spec([3, 84, 84]), (3, 84, 84), "nature_cnn"),
        (spec([84, 84]), (1, 84, 84), "nature_cnn"),
        (spec([4, 84, 84], stack=4), (4, 84, 84), "nature_cnn"),
        (spec([4, 84, 84]), (4, 84, 84), "nature_cnn"),  # stacked by a wrapper
        (spec([4, 84, 60, 3], stack=4), (12, 84, 60), "nature_cnn"),
        (spec([2, 3, 40, 40], stack=2), (6, 40, 40), "nature_cnn"),
        (spec([10, 10, 4]), (4, 10, 10), "minatar_cnn"),
        (spec([10, 10, 10]), (10, 10, 10), "minatar_cnn"),
        (spec([7, 7, 3]), (3, 7, 7), "minatar_cnn"),
        (spec([84, 39, 3]), (3, 84, 39), "minatar_cnn"),
        (spec([10, 5]), (1, 10, 5), "flat"),  # too small to be taken for an image by itself
        (spec([84, 84, 3], torch.float32), (3, 84, 84), "flat"),
        (spec([128]), None, "flat"),
        (spec([4, 128], stack=4), None, "flat"),
        (spec([2, 8, 8, 8]), None, "flat"),
        (Spec((), torch.int64, 16, 4, None, 1, None), None, "flat"),
    ],
)
def test_channels_height_and_width(seen, image, name):
    assert image_of(seen) == image
    assert choice(seen) == name
    assert isinstance(Auto(spec=seen), Flat if name == "flat" else Conv)
    if name != "flat":
        width = Auto(spec=seen)(torch.zeros(2, *seen.obs_shape, dtype=torch.uint8)).shape
        assert width == (2, Auto(spec=seen).n_out)


@pytest.mark.parametrize(
    ("shape", "stack", "axes"),
    [([6, 5, 2], 1, "hwc"), ([2, 6, 5], 1, "chw"), ([6, 5], 1, "hw"), ([3, 6, 5], 3, "khw"), ([3, 6, 5, 2], 3, "khwc"),
     ([3, 2, 6, 5], 3, "kchw"), ([6, 6, 6], 1, "hwc")],
)  # fmt: skip
def test_a_convolution_by_hand(shape, stack, axes):
    """Every output is the sum over a window of the image, whose channels are the frames and their colours in order."""
    generator = torch.Generator().manual_seed(0)
    encoder = Conv(spec=spec(shape, stack=stack), channels=[4, 3], kernels=[3, 2], strides=[2, 1], generator=generator)
    obs = torch.randint(256, (5, *shape), generator=generator, dtype=torch.uint8)
    sizes = dict(zip(axes, shape, strict=True))
    images = torch.zeros(5, sizes.get("k", 1) * sizes.get("c", 1), sizes["h"], sizes["w"])
    for index in np.ndindex(*shape):
        at = dict(zip(axes, index, strict=True))
        channel = at.get("k", 0) * sizes.get("c", 1) + at.get("c", 0)
        images[:, channel, at["h"], at["w"]] = obs[(slice(None), *index)] / 255
    first, second = encoder.layers
    by_hand = torch.zeros(5, 4, (sizes["h"] - 3) // 2 + 1, (sizes["w"] - 3) // 2 + 1)
    for out, row, column in np.ndindex(*by_hand.shape[1:]):
        window = images[:, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        by_hand[:, out, row, column] = (window * first.weight[out]).sum(dim=(1, 2, 3)) + first.bias[out]
    want = F.relu(F.conv2d(F.relu(by_hand), second.weight, second.bias)).flatten(1)
    assert torch.allclose(encoder(obs), want, atol=1e-5)
    assert encoder.n_out == want.shape[1]


@pytest.mark.parametrize(("kernel", "stride"), [(5, 5), (2, 2), (1, 1), (3, 2)])
def test_one_product_over_patches_that_lie_side_by_side_is_the_convolution(kernel, stride):
    layer, x = torch.nn.Conv2d(3, 4, kernel, stride), torch.rand(2, 3, 11, 13, requires_grad=True)
    outs = convolved(layer, x), layer(x)
    torch.testing.assert_close(*outs)
    weight = torch.randn_like(outs[0])
    grads = [torch.autograd.grad((out * weight).sum(), [x, layer.weight, layer.bias]) for out in outs]
    torch.testing.assert_close(*grads)


def test_weights_begin_as_pytorchs_own_from_the_given_stream_alone():
    before = torch.random.get_rng_state()
    one, same, other = (MINATAR(spec=spec([10, 10, 4]), generator=torch.Generator().manual_seed(i)) for i in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.layers[0].weight, same.layers[0].weight)
    assert not torch.equal(one.layers[0].weight, other.layers[0].weight)
    bound = (4 * 9) ** -0.5
    for parameter in one.parameters():
        assert 0.6 * bound < parameter.abs().max() <= bound


@pytest.mark.parametrize(
    ("box", "given", "want"),
    [
        (spaces.Box(0, 255, (7, 7), np.uint8), 51, 0.2),
        (spaces.Box(0, 1, (7, 7), np.uint8), 1, 1.0),
        (spaces.Box(0, 10, (7, 7), np.uint8), 5, 0.5),
        (spaces.Box(100, 200, (7, 7), np.uint8), 125, 0.25),
        (spaces.Box(0, 1, (7, 7), bool), True, 1.0),
        (spaces.Box(0, 1, (6,), bool), True, 1.0),
        (spaces.Box(0, 0, (7, 7), np.uint8), 0, 0.0),
        (spaces.Box(0, 9, (7, 7), np.int32), 5, 5.0),  # no image, so nothing is known of its scale
        (spaces.Box(-5, 5, (3,), np.int8), -2, -2.0),
        (spaces.Box(0.0, 9.0, (3,)), 5.0, 5.0),
    ],
)  # fmt: skip
def test_bytes_are_scaled_by_the_bounds_of_their_space(box, given, want):
    class Constant(gym.Env):
        observation_space, action_space = box, gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.full(box.shape, given, box.dtype), {}

    gym.registry.pop("Constant-v0", None)
    gym.register("Constant-v0", Constant)
    env = SeededEnv(EnvConfig(id="Constant-v0"), (0, "train", 0))
    obs = env.reset(0)
    assert obs.dtype == (np.uint8 if box.dtype in (np.uint8, bool) else np.float32)
    obs = torch.from_numpy(obs.copy()).unsqueeze(0)
    assert torch.allclose(Flat(spec=env.spec)(obs), torch.tensor(want))
    if len(box.shape) == 2:
        encoder = Conv(spec=env.spec, channels=[1], kernels=[7], strides=[1])
        encoder.layers[0].weight.data.fill_(1.0)
        encoder.layers[0].bias.data.zero_()
        assert encoder(obs).item() == pytest.approx(49 * want)


def test_truth_values_are_read_without_a_copy_and_checked():
    read = reader(spaces.Box(0, 1, (2, 2), bool))
    board = np.array([[True, False], [False, True]])
    assert np.shares_memory(read(board), board)
    assert read(board).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(Exception, match="of shape"):
        read(np.zeros((2, 3), bool))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("encoder=nature_cnn",
         "kernels [8, 4, 3] with strides [4, 2, 1] need images of 36x36 or more, these are 16x16: use encoder=minatar"),
        ("encoder=data_efficient", "need images of 25x25 or more"),
        ("env=CartPole-v1 algo=dqn encoder=minatar_cnn", "read images, observations here have shape [4]"),
        ("encoder=minatar_cnn encoder.strides=[1,1]", "channels, kernels and strides need one number for each layer"),
        ("encoder=minatar_cnn encoder.channels=[0]", "encoder.channels=0: must be greater than 0"),
    ],
)  # fmt: skip
def test_an_encoder_that_does_not_fit_is_one_line(words, line, rl_runner):
    ended = rl_runner("plugins=[pixels]", "env=Dot-v0", "algo=sac", *words.split())
    assert ended.code == 2
    assert len(ended.err) == 1
    assert line in ended.err[0]


@pytest.mark.parametrize("name", ["nature_cnn", "data_efficient", "minatar_cnn"])
def test_the_smallest_image_that_fits(name):
    keys = values_of(name)
    del keys["_target_"]
    side = smallest_side(keys["kernels"], keys["strides"])
    assert Conv(spec=spec([side, side]), **keys).n_out == keys["channels"][-1]
    with pytest.raises(UserError, match=f"need images of {side}x{side} or more, these are {side - 1}x{side + 9}"):
        Conv(spec=spec([side - 1, side + 9]), **keys)


IMAGES = Spec((8, 8, 2), torch.uint8, None, None, 2, 1, None)


def images(generator, count=5):
    return torch.randint(256, (count, 8, 8, 2), generator=generator, dtype=torch.uint8)


def batch_of(generator):
    action = torch.rand(5, 2, generator=generator) * 2 - 1
    reward, discount = torch.randn(5, generator=generator), torch.full((5,), 0.9)
    return Batch(images(generator), action, reward, discount, images(generator), torch.ones(5), torch.arange(5))


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
def test_the_critics_alone_train_the_encoder_that_the_actor_reads(name, make_agent, monkeypatch):
    batch = batch_of(torch.Generator().manual_seed(0))
    for loss in ("critic", "actor", "both"):
        agent = make_agent(name, spec=IMAGES, encoder=MINATAR, actor_lr=0.0 if loss == "critic" else 0.1)
        encoder = agent.critics.encoder
        assert agent.actor.encoder.encoder is encoder
        before = deepcopy(encoder.state_dict())
        if loss == "actor":
            agent.critic_optimizer.param_groups[0]["lr"] = 0.0
        obs = images(torch.Generator().manual_seed(1))
        acts = agent.act(obs)
        for step in (1, 2):  # a delayed actor learns in the second
            agent.update(batch, step)
        moved = [not torch.equal(value, before[key]) for key, value in encoder.state_dict().items()]
        assert all(moved) if loss != "actor" else not any(moved)
        assert all(parameter.grad is None for parameter in encoder.parameters())
        assert not torch.equal(agent.act(obs), acts)
        held = {id(p) for group in agent.actor_optimizer.param_groups for p in group["params"]}
        assert held.isdisjoint(map(id, encoder.parameters()))


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
def test_actor_and_critics_read_one_encoder_also_after_loading(name, make_agent):
    saved, loaded = (make_agent(name, spec=IMAGES, encoder=MINATAR, seed=seed) for seed in (1, 2))
    batch = batch_of(torch.Generator().manual_seed(0))
    for step in (1, 2):
        saved.update(batch, step)
    load_state(loaded, state_of(saved))
    assert loaded.actor.encoder.encoder is loaded.critics.encoder
    assert torch.equal(loaded.act(batch.obs), saved.act(batch.obs))
    for step in (3, 4):  # both go on with it
        saved.update(batch, step)
        loaded.update(batch, step)
    assert torch.equal(loaded.act(batch.obs), saved.act(batch.obs))


def test_double_dqn_trains_and_copies_its_encoder(make_agent):
    seen = Spec((8, 8, 2), torch.uint8, None, 4, None, 1, None)
    agent = make_agent("dqn", spec=seen, encoder=MINATAR, double=True)
    batch = batch_of(torch.Generator().manual_seed(0))._replace(action=torch.tensor([0, 1, 2, 3, 0]))
    before = deepcopy(agent.q.encoder.state_dict())
    agent.update(batch, 1)
    assert not torch.equal(agent.q.encoder.layers[0].weight, before["layers.0.weight"])
    assert torch.equal(agent.target_q.encoder.layers[0].weight, before["layers.0.weight"])
    after = agent.q.encoder.layers[0].weight.clone()
    agent.update(batch, 10)  # copies first
    assert torch.equal(agent.target_q.encoder.layers[0].weight, after)


WORDS = (
    "plugins=[pixels]", "env=Dot-v0", "encoder=minatar_cnn", "network.hidden=[16]", "algo.batch_size=16", "tuned=none",
    "total_steps=200", "learning_starts=50", "log_every=50", "eval_every=0", "final_eval_episodes=2", "replay.n_step=2",
    "env.frame_stack=2", "replay=prioritized", "replay.deduplicate=true", "replay.capacity=150",
)  # fmt: skip
DISCRETE = ["env=Catch-v0", "algo=ddqn", "network=dueling"]


@pytest.mark.parametrize("name", ["dqn", pytest.param("sac", marks=pytest.mark.slow)])
def test_an_update_with_convolutions_is_one_graph(name, make_agent):
    seen, actions = IMAGES, torch.linspace(-1, 1, 80).view(40, 1, 2)
    if name == "dqn":
        seen, actions = replace(IMAGES, num_actions=4, action_dim=None), torch.arange(40).view(40, 1) % 4
    found = []
    for mode in ("eager", "compile"):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        wired = {"num_envs": 1, "gamma": 0.9, "total_steps": 100, "seed": 3, "device": "cpu", "directory": None}
        replay, generator = UniformReplay(spec=seen, capacity=64, **wired), torch.Generator().manual_seed(0)
        for action in actions:
            reward, ended = torch.randn(1, generator=generator), torch.rand(1, generator=generator) < 0.2
            replay.add(images(generator, 1), action, reward, ended, ended & False, images(generator, 1))
        agent, averages = make_agent(name, spec=seen, encoder=MINATAR), Averages()
        update = build_update(agent, replay, averages, mode)
        for step in range(1, 6):
            update(step)
        found.append((averages.read(), dict(tensors(state_of(agent)))))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    (eager, expected), (compiled, state) = found
    assert compiled == pytest.approx(eager, rel=1e-5)
    for path, value in expected.items():
        torch.testing.assert_close(state[path], value, rtol=1e-5, atol=1e-6, msg=path)


@pytest.mark.slow
def test_one_graph_learns_what_eager_does(rl_runner, tmp_path):
    directories = [tmp_path / mode for mode in ("eager", "compile")]
    for directory in directories:
        words = [*WORDS, "algo=td3", f"accelerate={directory.name}", f"hydra.run.dir={directory}"]
        assert rl_runner(*words, "total_steps=70", "log_every=60").code == 0
    one, other = (rows(directory)[0] for directory in directories)
    assert one.keys() == other.keys() > {"losses/td_loss", "losses/actor_loss"}
    for tag, value in one.items():
        assert other[tag] == pytest.approx(value, rel=1e-3, abs=1e-4), tag


@pytest.mark.parametrize("words", [["algo=sac"], ["env=Catch-v0", "algo=ddqn", "network=dueling"]])
def test_every_command_opens_a_run_with_images(words, rl_runner, tmp_path):
    ended = rl_runner(*WORDS, *words, f"hydra.run.dir={tmp_path}")
    assert ended.code == 0, ended.err
    assert any(line.startswith("encoder: minatar_cnn, an image of") for line in ended.out)
    assert load_config(tmp_path / "config.yaml", ["plugins=[pixels]"]).chosen["encoder"] == "minatar_cnn"
    for command in (["eval", "--episodes", "2"], ["export"]):
        ended = rl_runner(*command, str(tmp_path), "plugins=[pixels]")
        assert ended.code == 0, ended.err
    module = torch.export.load(tmp_path / "policy.pt2").module()
    shape = (3, 2, 10, 5) if "env=Catch-v0" in words else (3, 2, 16, 16)
    assert len(module(torch.zeros(shape, dtype=torch.uint8))) == 3


def test_what_the_observation_chooses_is_written_down(rl_runner, tmp_path):
    for env, name in (("Dot-v0", "minatar_cnn"), ("Pendulum-v1", "flat")):
        words = ["plugins=[pixels]", f"env={env}", "algo=sac", "total_steps=2", f"hydra.run.dir={tmp_path / env}"]
        assert rl_runner(*words, "final_eval_episodes=1", "eval_episodes=1").code == 0
        config = load_config(tmp_path / env / "config.yaml", ["plugins=[pixels]"])
        assert (config.chosen["encoder"], config.encoder) == (name, values_of(name))


@pytest.mark.parametrize(
    ("shape", "words", "line"),
    [
        ((8, 9, 3), [], "encoder: flat, an image of 8x9 with 3 channels becomes 216 features"),
        ((8, 9, 3), ["encoder=minatar_cnn"],
         "encoder: minatar_cnn, an image of 8x9 with 3 channels becomes 672 features"),
        ((6, 9), [], None),  # a table
        ((72,), [], None),
    ],
)  # fmt: skip
def test_an_image_that_is_flattened_is_announced(shape, words, line, rl_runner):
    class Numbers(Dot):
        observation_space = spaces.Box(0, 1, shape)

        def image(self):
            return np.zeros(shape, np.float32)

    env_id = f"Numbers{len(shape)}-v0"
    gym.registry.pop(env_id, None)
    gym.register(env_id, Numbers)
    ended = rl_runner("plugins=[pixels]", f"env={env_id}", "algo=sac", "replay.capacity=500", "dry_run=true", *words)
    assert ended.code == 0, ended.err
    said = [each for each in ended.out if each.startswith("encoder: ")]
    assert [each[: len(line)] for each in said] == [line] if line else not said


def test_parts_of_a_dict_are_chosen_by_the_run(rl_runner):
    words = ["plugins=[pixels]", "env=Parts-v0", "algo=dqn", "dry_run=true"]
    part = "env.observation_keys=[view]"
    assert "observations [113] float32, 3 discrete actions; 1 environment" in rl_runner(*words, "encoder=flat").out
    ended = rl_runner(*words, part)
    assert "observations [7, 16] uint8, 3 discrete actions; 1 environment" in ended.out
    ended = rl_runner(*words, part.replace("view", "vieW"))
    assert (ended.code, len(ended.err)) == (2, 1)
    assert ended.err[0] == "env.observation_keys: no vieW is observed; did you mean view?"


CATCH = ["plugins=[pixels]", "env=Catch-v0", "algo=dqn", "encoder=minatar_cnn", "network.hidden=[64]", "eval_every=0"]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_dqn_learns_to_catch(seed, rl_runner, tmp_path):
    words = [*CATCH, "total_steps=5_000", "accelerate=eager", f"seed={seed}", f"hydra.run.dir={tmp_path}"]
    assert rl_runner(*words).code == 0
    assert read_json(tmp_path / "result.json")["eval/return_mean"] == pytest.approx(1.0, abs=0.1)


# An entropy bonus of α = 1 would drown rewards of at most 1, and 900 updates could not lower it.
DOT = [
    "plugins=[pixels]", "env=Dot-v0", "algo=sac", "encoder=minatar_cnn", "encoder.strides=[3]", "network.hidden=[64]",
    "algo.gamma=0.9", "algo.initial_alpha=0.05", "algo.tau=0.01", "algo.batch_size=64", "optimizer.lr=1e-3",
    "learning_starts=500", "total_steps=4_000", "num_envs=4", "update_every=4", "eval_every=0", "accelerate=eager",
    "final_eval_episodes=50", "threads=1",
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_sac_learns_from_images(seed, rl_runner, tmp_path):
    assert rl_runner(*DOT, f"seed={seed}", f"hydra.run.dir={tmp_path}").code == 0
    world, best = Dot(), []
    for environment, episode in np.ndindex(10, 5):
        world.reset(seed=derive(seed, "eval", environment, episode))
        best.append(world.optimum())
    assert read_json(tmp_path / "result.json")["eval/return_mean"] >= 0.8 * np.mean(best)
