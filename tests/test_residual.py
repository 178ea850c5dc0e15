"""Residual networks, by hand and beside PyTorch's own layers, and what surrounds them: export, bfloat16, refusals."""

import functools
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sweeping import Ended
from test_precision import needs_bfloat16
from test_updates import batch_of
from torch import Tensor
from torch.nn import functional as F

from rl_runner import accelerate, saved_policy
from rl_runner.config.schema import Config
from rl_runner.encoders import Flat
from rl_runner.envs import Spec
from rl_runner.layers import RMSNorm
from rl_runner.networks import Critics
from rl_runner.optim import build, minimize
from rl_runner.residual import Residual
from rl_runner.run import run

BOX = Spec((3,), torch.float32, None, None, 2, 1, None)
KINDS = ("pre_layer", "post_layer", "post_batch")
PRESETS = {"simba": "pre_layer", "bro_fast": "post_layer", "flashsac": "post_batch"}
SMALL = functools.partial(Residual, width=6, blocks=2, expansion=2, activation="relu")
TINY = (
    "tuned=none", "env=Pendulum-v1", "learning_starts=40", "total_steps=60", "log_every=60", "eval_every=0",
    "final_eval_episodes=1", "algo.batch_size=8", "replay.capacity=100", "actor_network.width=8",
    "critic_network.width=8",
)  # fmt: skip


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Values by hand


def test_root_mean_square_by_hand() -> None:
    norm = RMSNorm(2, lead=(1,))
    norm.weight.data = torch.tensor([[[1.0, 2.0]]])
    out = norm(torch.tensor([[3.0, 4.0]]))
    assert out.flatten().tolist() == pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5], abs=1e-6)
    assert norm(torch.zeros(1, 2)).flatten().tolist() == [0.0, 0.0]


def by_hand(block: Any, up: list[list[float]], down: list[list[float]]) -> Residual:
    """Two units and one block; the first and the last map change nothing."""
    net = Residual(n_in=2, n_out=2, block=block, width=2, blocks=1, expansion=1, activation="relu")
    for layer, weight in ((net.first, [[1, 0], [0, 1]]), (net.up[0], up), (net.down[0], down),
                          (net.output, [[1, 0], [0, 1]])):  # fmt: skip
        layer.weight.data = torch.tensor(weight, dtype=torch.float32)
    return net


def test_simba_by_hand() -> None:
    """Of (1, 3): normed (-1, 1), relu (0, 1), down (2, 1); (1, 3) + (2, 1) = (3, 4) is normed to (-1, 1) again."""
    net = by_hand("pre_layer", [[1, 0], [0, 1]], [[5, 5], [2, 1]])
    seen: list[Tensor] = []
    net.last_norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    unit = 1 / 1.00001**0.5  # ε = 1e-5 within the root
    out = net(torch.tensor([[1.0, 3.0]]))
    assert seen[0].flatten().tolist() == pytest.approx([1 + 2 * unit, 3 + unit], abs=1e-6)
    half = (2 - unit) / 2
    end = half / (half * half + 1e-5) ** 0.5
    assert out.flatten().tolist() == pytest.approx([-end, end], abs=1e-6)


def test_bro_by_hand() -> None:
    """Of (1, 3): normed (-1, 1), relu (0, 1); up (2, 4) normed (-1, 1), relu (0, 1); down (3, 1) normed (1, -1)."""
    net = by_hand("post_layer", [[9, 9], [2, 4]], [[9, 9], [3, 1]])
    unit = 1 / 1.00001**0.5
    middle = unit / (unit * unit + 1e-5) ** 0.5
    end = middle / (middle * middle + 1e-5) ** 0.5
    assert net(torch.tensor([[1.0, 3.0]])).flatten().tolist() == pytest.approx([end, unit - end], abs=1e-6)


def test_flashsac_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows, so that every norm of them is (-1, 1) or (1, -1): the first row loses, the second gains."""
    monkeypatch.setattr("rl_runner.layers.BatchNorm.EPSILON", 0.0)
    net = by_hand("post_batch", [[1, 0], [0, 1]], [[1, 0], [0, 1]])
    out = net(torch.tensor([[0.0, 7.0], [4.0, 1.0]]), training=True)
    # x = (-1, 1), (1, -1); up of it normed, relu: (0, 1), (1, 0); down of it normed (-1, 1), (1, -1), relu; sum
    wanted = np.array([[-1.0, 2.0], [2.0, -1.0]]) / (2.5 + 1e-6) ** 0.5
    assert out.flatten().tolist() == pytest.approx(wanted.ravel(), abs=1e-6)
    assert (net.input_norm.mean.flatten().tolist(), net.input_norm.calls) == (pytest.approx([0.02, 0.04]), 1)


@pytest.mark.parametrize("block", KINDS)
def test_without_its_second_map_a_block_changes_nothing(block: Any) -> None:
    net, none = (Residual(n_in=3, n_out=2, block=block, width=6, blocks=b, expansion=2, activation="relu",
                          generator=stream()) for b in (2, 1))  # fmt: skip
    none.load_state_dict({name: t for name, t in net.state_dict().items() if ".1." not in name})
    for layer in (*net.down, *none.down):
        layer.weight.data.zero_()
    x = torch.randn(5, 3, generator=stream(1))
    assert torch.equal(net(x, training=True), none(x, training=True))
    none.down[0].weight.data.normal_()
    assert not torch.allclose(net(x, training=True), none(x, training=True))


@pytest.mark.parametrize(
    ("block", "norms"),
    [
        ("pre_layer", 2 * 2 * 6 + 2 * 6),
        ("post_layer", 2 * 6 + 2 * (2 * 18 + 2 * 6)),
        ("post_batch", 2 * 3 + 2 * (2 * 18 + 2 * 6) + 6),
    ],
)
def test_number_of_parameters(block: Any, norms: int) -> None:
    net = Residual(n_in=3, n_out=2, block=block, width=6, blocks=2, expansion=3, activation="relu")
    affine = (3 + 1) * 6 + 2 * ((6 + 1) * 18 + (18 + 1) * 6) + (6 + 1) * 2
    assert sum(p.numel() for p in net.parameters()) == affine + norms


@pytest.mark.parametrize("block", KINDS)
def test_a_network_is_that_of_torchs_layers(block: Any) -> None:
    net = SMALL(n_in=3, n_out=2, block=block, generator=stream())
    for p in net.parameters():
        p.data.normal_(0, 0.7, generator=stream(p.numel()))
    x = torch.randn(7, 3, generator=stream(1))

    def affine(layer: Any, h: Tensor) -> Tensor:
        return F.linear(h, layer.weight.T, layer.bias[0])

    def norm(layer: Any, h: Tensor) -> Tensor:
        if block == "post_batch":
            return F.batch_norm(h, None, None, layer.weight[0], layer.bias[0], training=True, eps=1e-3)
        return F.layer_norm(h, h.shape[-1:], layer.weight[0], layer.bias[0])

    h = affine(net.first, norm(net.input_norm, x) if block == "post_batch" else x)
    h = F.relu(norm(net.first_norm, h)) if block == "post_layer" else h
    for i in range(2):
        if block == "pre_layer":
            h = h + affine(net.down[i], F.relu(affine(net.up[i], norm(net.up_norms[i], h))))
        else:
            inside = norm(net.down_norms[i], affine(net.down[i], F.relu(norm(net.up_norms[i], affine(net.up[i], h)))))
            h = h + (F.relu(inside) if block == "post_batch" else inside)
    if block == "post_batch":
        h = F.rms_norm(h, (6,), net.last_norm.weight[0], eps=1e-6)
    elif block == "pre_layer":
        h = norm(net.last_norm, h)
    assert torch.allclose(net(x, training=True), affine(net.output, h), atol=1e-5)


# How weights begin


@pytest.mark.parametrize("block", KINDS)
def test_weights_begin_as_in_the_papers(block: Any) -> None:
    net = Residual(n_in=8, n_out=4, lead=(2,), block=block, width=64, blocks=1, expansion=4, activation="relu",
                   generator=stream())  # fmt: skip
    gain = 2**0.5 if block == "post_layer" else 1.0
    orthogonal = [net.first, net.output] + ([] if block == "pre_layer" else [net.up[0], net.down[0]])
    for layer in orthogonal:
        for weight in layer.weight:
            weight = weight if weight.shape[0] < weight.shape[1] else weight.T
            assert torch.allclose(weight @ weight.T, gain**2 * torch.eye(len(weight)), atol=1e-5)
    if block == "pre_layer":
        for layer, n_in in ((net.up[0], 64), (net.down[0], 256)):
            assert layer.weight.std().item() == pytest.approx((2 / n_in) ** 0.5, rel=0.02)
    for layer in (net.first, net.up[0], net.down[0], net.output):
        assert not torch.allclose(layer.weight[0], layer.weight[1], atol=0.01)
        assert not layer.bias.any()


@pytest.mark.parametrize("block", ["post_layer", "post_batch"])
def test_weights_of_norm_one_at_first_and_after_each_step_but_not_of_the_output(block: Any) -> None:
    net = SMALL(n_in=3, n_out=2, lead=(2,), block=block, unit_norm=True, generator=stream())
    optimizer = build(functools.partial(torch.optim.Adam, lr=0.1), net.parameters())
    for step in range(3):
        for layer in (net.first, *net.up, *net.down):
            assert torch.allclose(layer.weight.norm(dim=-2), torch.ones(()), atol=1e-6)
        minimize(net(torch.randn(8, 3, generator=stream(step)), training=True).square().sum(), optimizer)
    assert not torch.allclose(net.output.weight.norm(dim=-2), torch.ones(()), atol=1e-2)


# Leading axes


@pytest.mark.parametrize("block", KINDS)
def test_a_stack_computes_and_moves_as_its_members_do(block: Any) -> None:
    stack = SMALL(n_in=3, n_out=4, lead=(2, 3), block=block, generator=stream())
    member = SMALL(n_in=3, n_out=4, block=block)
    x = torch.randn(2, 1, 5, 3, generator=stream(1))
    before = deepcopy(stack.state_dict())
    out, after = stack(x, training=True), stack.state_dict()
    for s in range(2):
        for e in range(3):
            member.load_state_dict({name: t[s, e] if t.dim() else t for name, t in before.items()})
            assert torch.allclose(out[s, e], member(x[s, 0], training=True), atol=1e-5)
            for name, tensor in member.state_dict().items():
                assert torch.allclose(tensor, after[name][s, e] if tensor.dim() else after[name]), name


@pytest.mark.parametrize("block", KINDS)
def test_the_first_critic_alone_is_the_first_of_all(block: Any) -> None:
    critics = Critics(BOX, functools.partial(SMALL, block=block), Flat(spec=BOX), 1, 2, stream())
    obs, action = torch.randn(5, 3, generator=stream(1)), torch.randn(5, 2, generator=stream(2))
    assert torch.allclose(critics.first(obs, action), critics(obs, action)[0], atol=1e-6)
    assert critics.normalises_batches == (block == "post_batch")


@pytest.mark.parametrize("name", ["dqn", "ddpg", "td3", "discrete_sac"])
@pytest.mark.parametrize("block", KINDS)
def test_every_agent_learns_with_it(make_agent: Any, name: str, block: Any) -> None:
    agent = make_agent(name, network=functools.partial(SMALL, block=block), optimizer=functools.partial(
        torch.optim.Adam, lr=1e-2))  # fmt: skip
    batch = batch_of(0, discrete=name in ("dqn", "discrete_sac"))
    losses = [agent.update(batch, step)[0]["losses/td_loss"].item() for step in range(60)]
    assert losses[-1] < 0.5 * losses[0]


# Presets


@pytest.mark.parametrize("algo", PRESETS)
def test_an_exported_policy_acts_like_the_agent(algo: str, configure: Callable[..., Config], tmp_path: Path) -> None:
    config = configure(f"algo={algo}", *TINY)
    assert config.network["block"] == PRESETS[algo]
    run(config, tmp_path)
    program = torch.export.load(saved_policy.export([str(tmp_path)])).module()
    agent, step, _ = saved_policy.load(config, tmp_path)
    assert step == 60
    for size in (1, 7):
        obs = torch.randn(size, 3, generator=stream(size))
        assert torch.allclose(program(obs), 2 * agent.act(obs), atol=1e-5)


def test_sizes_are_those_of_the_papers(configure: Callable[..., Config]) -> None:
    sizes = {algo: [configure(f"algo={algo}", "env=Pendulum-v1").group(part) for part in
                    ("actor_network", "critic_network")] for algo in PRESETS}  # fmt: skip
    found = {algo: [tuple(one[key] for key in ("width", "blocks", "expansion")) for one in both]
             for algo, both in sizes.items()}  # fmt: skip
    assert found == {
        "simba": [(128, 1, 4), (512, 2, 4)],
        "bro_fast": [(256, 1, 1), (512, 2, 1)],
        "flashsac": [(128, 2, 4), (256, 2, 4)],
    }


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("algo=flashsac algo.batch_size=1",
         "algo.batch_size=1: a batch of one has no variance: use algo.batch_size=256, or network.block=pre_layer"),
        ("algo=simba critic_network.block=post_batch algo.batch_size=1",
         "algo.batch_size=1: a batch of one has no variance: use algo.batch_size=256, or "
         "critic_network.block=pre_layer"),
        ("network=residual network.unit_norm=true",
         "network.unit_norm=true: needs a norm behind each layer: add network.block=post_batch"),
        ("algo=simba critic_network.unit_norm=true",
         "critic_network.unit_norm=true: needs a norm behind each layer: add critic_network.block=post_batch"),
        ("network=residual network.block=batch",
         "network.block=batch: must be 'pre_layer', 'post_layer' or 'post_batch'"),
        ("network=residual network.width=0", "network.width=0: must be greater than 0"),
        ("network=residual network.blocks=0", "network.blocks=0: must be greater than 0"),
        ("algo=flashsac value.v_min=5",
         "value.v_min=5: must be less than value.v_max=5; give them the other way"),
    ],
)  # fmt: skip
def test_what_does_not_go_is_one_line(words: str, line: str, rl_runner: Callable[..., Ended]) -> None:
    ended = rl_runner(*words.split(), "env=Pendulum-v1", "tuned=none", "dry_run=true")
    assert (ended.code, ended.err) == (2, [line])


def test_hidden_of_another_network_is_one_line(rl_runner: Callable[..., Ended]) -> None:
    ended = rl_runner("algo=simba", "network.hidden=[64]", "dry_run=true")
    assert (ended.code, len(ended.err)) == (2, 1)
    assert ended.err[0].startswith("network.hidden: no such key")


# Products in bfloat16


@needs_bfloat16
@pytest.mark.parametrize("block", KINDS)
def test_what_is_summed_and_normalised_stays_in_float32(block: Any) -> None:
    net = Residual(n_in=3, n_out=2, block=block, width=128, blocks=2, expansion=2, activation="gelu",
                   unit_norm=block == "post_batch", generator=stream())  # fmt: skip
    seen: dict[str, torch.dtype] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out.dtype}))
    x = torch.randn(64, 3, generator=stream(1))
    call = accelerate.in_bfloat16(lambda x: net(x, training=True), torch.device("cpu"))
    exact, rounded = net(x, training=True), call(x)
    wide = {f"{name}.{i}" for name in ("up", "down") for i in range(2)}
    assert {name for name, dtype in seen.items() if dtype is torch.bfloat16} == wide
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
    grads = [torch.cat([g.flatten() for g in torch.autograd.grad(out.square().sum(), list(net.parameters()),
                                                                 materialize_grads=True)])
             for out in (call(x), net(x, training=True))]  # fmt: skip
    assert 0 < (grads[0] - grads[1]).norm() < 0.03 * grads[1].norm()


@needs_bfloat16
def test_a_wide_first_map_begins_a_stream_of_float32() -> None:
    net = Residual(n_in=128, n_out=2, block="pre_layer", width=128, blocks=1, expansion=1, activation="relu")
    seen: list[Tensor] = []
    net.up_norms[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    accelerate.in_bfloat16(net, torch.device("cpu"))(torch.randn(4, 128))
    assert seen[0].dtype is torch.float32
