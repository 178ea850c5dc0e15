"""Optimizers: the functional steps are PyTorch's own, only own parameters move, targets follow as written."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from rl_runner.optim import Targets, build, lr_factor, minimize, parameters, traceable, with_schedule

ADAM = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3}
VARIANTS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (Adam, ADAM),
    (Adam, ADAM | {"weight_decay": 0.1, "amsgrad": True}),
    (Adam, ADAM | {"maximize": True}),
    (AdamW, ADAM | {"weight_decay": 0.1}),
    (RMSprop, {"lr": 0.03, "alpha": 0.8, "eps": 1e-3}),
    (RMSprop, {"lr": 0.03, "alpha": 0.8, "centered": True, "momentum": 0.7, "weight_decay": 0.1}),
    (SGD, {"lr": 0.03}),
    (SGD, {"lr": 0.03, "momentum": 0.8, "weight_decay": 0.1}),
    (SGD, {"lr": 0.03, "momentum": 0.8, "nesterov": True}),
    (SGD, {"lr": 0.03, "momentum": 0.8, "dampening": 0.5}),
    (Adagrad, {"lr": 0.03}),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def loss_of(net: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
    return (net(x) - x[:, :2]).square().mean()


@pytest.mark.parametrize(("kind", "keys"), VARIANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_every_optimizer_steps_like_its_own_step(float64: None, kind: type[Optimizer], keys: dict[str, Any]) -> None:
    net, twin = network(), network()
    optimizer = build(functools.partial(kind, **keys), list(net.parameters()))
    reference = kind(twin.parameters(), **keys)
    for step in range(6):
        norm = minimize(loss_of(net, step), optimizer)
        reference.zero_grad()
        loss_of(twin, step).backward()
        assert norm.item() == pytest.approx(nn.utils.get_total_norm([p.grad for p in twin.parameters()]).item())
        reference.step()
        for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("kind", "keys"), VARIANTS, ids=lambda value: getattr(value, "__name__", ""))
def test_learning_rates_fall_like_a_scheduler_of_pytorch(
    float64: None, kind: type[Optimizer], keys: dict[str, Any]
) -> None:
    class Agent:
        """Two optimizers with learning rates of their own."""

        def __init__(self, net: nn.Sequential):
            self.body = build(functools.partial(kind, **keys), list(net[0].parameters()))
            self.head = build(functools.partial(kind, **keys | {"lr": 0.05}), net[2].parameters())

    net, twin = network(), network()
    agent = Agent(net)
    references = [kind(twin[0].parameters(), **keys), kind(twin[2].parameters(), **keys | {"lr": 0.05})]
    schedulers = [LambdaLR(reference, lambda update: 1 - (4 * update) / 24) for reference in references]
    update = with_schedule(
        lambda step: [minimize(loss_of(net, step), optimizer) for optimizer in (agent.body, agent.head)],
        agent,
        functools.partial(lr_factor, "linear", 0.0, 24),
    )
    for i in range(7):
        update(4 * i)
        for reference, scheduler in zip(references, schedulers, strict=True):
            twin.zero_grad()
            loss_of(twin, 4 * i).backward()
            reference.step()
            scheduler.step()
        for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    before = [p.detach().clone() for p in net.parameters()]
    update(28)  # past the end, as a last round of several environments may be
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_several_parameter_groups_keep_their_own_settings(float64: None) -> None:
    net, twin = network(), network()

    def groups(model: nn.Sequential) -> list[dict[str, Any]]:
        return [{"params": [*model[2].parameters()], "lr": 0.1}, {"params": [*model[0].parameters()], "lr": 0.5}]

    optimizer, reference = SGD(groups(net)), SGD(groups(twin))
    minimize(loss_of(net, 0), optimizer)
    loss_of(twin, 0).backward()
    reference.step()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)


def test_only_the_shipped_optimizers_are_traceable() -> None:
    class Mine(Adam):
        """A subclass may do anything in its step."""

    def one(kind: Callable[..., Optimizer], **keys: Any) -> Optimizer:
        return build(functools.partial(kind, lr=0.1, **keys), list(network().parameters()))

    assert all(traceable(one(kind)) for kind in (Adam, AdamW, RMSprop, SGD))
    assert not traceable(one(Adagrad))
    assert not traceable(one(Mine))
    assert not traceable(one(SGD, momentum=0.9, dampening=0.5))


def test_an_optimizer_from_outside_creates_its_own_state(float64: None) -> None:
    class Counting(Adam):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            self.steps += 1
            return super().step(closure)

    net = network()
    optimizer: Any = build(functools.partial(Counting, lr=0.1), list(net.parameters()))
    assert not optimizer.state
    minimize(loss_of(net, 0), optimizer)
    minimize(loss_of(net, 1), optimizer)
    assert optimizer.steps == 2


@pytest.mark.parametrize("kind", [Adam, Adagrad])
def test_minimize_touches_only_its_own_parameters(kind: type[Optimizer]) -> None:
    net = network()
    own, other = net[2], net[0]
    before = [p.detach().clone() for p in net.parameters()]
    minimize(loss_of(net, 0), build(functools.partial(kind, lr=0.1), list(own.parameters())))
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before[:2], strict=True))
    assert all(not torch.equal(p, q) for p, q in zip(own.parameters(), before[2:], strict=True))
    assert all(p.grad is None for p in other.parameters())


def test_minimize_leaves_what_the_loss_does_not_use() -> None:
    net, idle = network(), nn.Linear(3, 2)
    kept, before = idle.weight.clone(), net[0].weight.clone()
    minimize(loss_of(net, 0), build(functools.partial(Adam, lr=0.1), [*net.parameters(), *idle.parameters()]))
    assert torch.equal(idle.weight, kept)
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize("max_norm", [0.01, 100.0])
def test_gradients_are_clipped_like_torchs(float64: None, max_norm: float) -> None:
    net, twin = network(), network()
    norm = minimize(loss_of(net, 0), build(functools.partial(SGD, lr=0.5), list(net.parameters())), max_norm)
    loss_of(twin, 0).backward()
    assert norm.item() == pytest.approx(nn.utils.clip_grad_norm_(twin.parameters(), max_norm).item())
    SGD(twin.parameters(), lr=0.5).step()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)


def test_build_takes_another_learning_rate_if_one_is_given() -> None:
    factory = functools.partial(Adam, lr=0.5)
    assert build(factory, list(network().parameters())).param_groups[0]["lr"] == 0.5


def test_parameters_come_in_the_order_of_their_groups() -> None:
    net = network()
    optimizer = SGD([{"params": [net[2].weight]}, {"params": [net[0].weight, net[0].bias]}], lr=0.1)
    assert [id(p) for p in parameters(optimizer)] == [id(net[2].weight), id(net[0].weight), id(net[0].bias)]


def test_target_networks_follow_in_place() -> None:
    target, online = nn.Linear(1, 1), nn.Linear(1, 1)
    weight = target.weight
    for module, weight_value, bias_value in ((target, 1.0, -2.0), (online, 3.0, 4.0)):
        nn.init.constant_(module.weight, weight_value)
        nn.init.constant_(module.bias, bias_value)
    targets = Targets((target, online))
    targets.polyak(0.25)
    assert (target.weight.item(), target.bias.item()) == (0.25 * 3 + 0.75 * 1, 0.25 * 4 + 0.75 * -2)
    assert (online.weight.item(), online.bias.item()) == (3.0, 4.0)
    targets.copy()
    assert (target.weight.item(), target.bias.item()) == (3.0, 4.0)
    assert target.weight is weight
    nn.init.zeros_(online.weight)
    assert target.weight.item() == 3.0
