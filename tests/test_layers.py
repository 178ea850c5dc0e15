"""Norms, dropout and weights of norm 1, by hand and beside PyTorch's own layers."""

import functools
from copy import deepcopy
from typing import Any

import pytest
import torch
from test_updates import batch_of, scramble
from torch import Tensor, nn

from rl_runner.encoders import Flat
from rl_runner.envs import Spec
from rl_runner.layers import BatchNorm, dropped
from rl_runner.networks import MLP, Critics
from rl_runner.optim import build, minimize

BOX = Spec((3,), torch.float32, None, None, 2, 1, None)
PLAIN = functools.partial(MLP, hidden=[7, 6], activation="relu")
BATCH = functools.partial(PLAIN, norm="batch")


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).unsqueeze(1)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchNorm, "EPSILON", 0.0)


# Batch norm


def test_both_halves_of_a_joint_batch_have_its_statistics(exact: None) -> None:
    norm = BatchNorm(1)
    out = norm(column(0, 2, 4, 6), training=True).squeeze(1)
    assert out.tolist() == pytest.approx([-1.341641, -0.447214, 0.447214, 1.341641], abs=1e-6)
    assert (norm.mean.item(), norm.var.item(), norm.calls.item()) == (pytest.approx(0.03), pytest.approx(1.04), 1)
    apart = BatchNorm(1)(column(0, 2), training=True).squeeze(1)
    assert apart.tolist() == pytest.approx([-1, 1])


def test_epsilon_is_within_the_root() -> None:
    assert BatchNorm(1)(column(0, 2), training=True)[1].item() == pytest.approx(1.001**-0.5)


def test_renormalised_to_running_statistics_of_mean_0_and_variance_1_nothing_changes(exact: None) -> None:
    norm = BatchNorm(1)
    norm.calls.fill_(100_000)
    assert norm(column(0, 2, 4, 6), training=True).squeeze(1).tolist() == pytest.approx([0, 2, 4, 6], abs=1e-6)
    assert (norm.mean.item(), norm.var.item()) == (pytest.approx(0.03), pytest.approx(1.04))


@pytest.mark.parametrize(
    ("x", "wanted"),
    [
        ((0, 20), (5 - 3, 5 + 3)),  # σ = 10, μ = 10: r = 10 is cut to 3, d = 10 to 5
        ((-20, 0), (-5 - 3, -5 + 3)),
        ((0.1, 0.3), (0.2 - 1 / 3, 0.2 + 1 / 3)),  # σ = 0.1 is raised to 1/3
    ],
)
def test_r_and_d_are_clipped(exact: None, x: tuple[float, float], wanted: tuple[float, float]) -> None:
    norm = BatchNorm(1)
    norm.calls.fill_(100_000)
    assert norm(column(*x), training=True).squeeze(1).tolist() == pytest.approx(wanted)


def test_the_first_hundred_thousand_calls_are_plain(exact: None) -> None:
    norm = BatchNorm(1)
    norm.calls.fill_(99_999)
    assert norm(column(0, 2), training=True).squeeze(1).tolist() == pytest.approx([-1, 1])
    assert norm(column(0, 2), training=True).squeeze(1).tolist() != pytest.approx([-1, 1], abs=1e-3)


def test_no_gradient_passes_through_r_and_d(float64: None) -> None:
    """As if they were numbers: the gradient of plain batch normalisation times r."""
    x, norm = torch.randn(5, 2, requires_grad=True), BatchNorm(2)
    norm.calls.fill_(100_000)
    norm.mean.fill_(0.3)
    norm.var.fill_(0.7)
    out, std = norm(x, training=True), (x.var(dim=0, correction=0) + 1e-3).sqrt()
    r, d = std / 0.701**0.5, (x.mean(dim=0) - 0.3) / 0.701**0.5
    wanted = (x - x.mean(dim=0)) / std * r.detach() + d.detach()
    assert torch.allclose(out, wanted)
    grads = [torch.autograd.grad(y.pow(3)[0].sum(), x)[0] for y in (out, wanted)]
    assert torch.allclose(*grads)


def test_outside_of_training_running_statistics_normalise_and_stay() -> None:
    norm = BatchNorm(1)
    norm.mean.fill_(2.0)
    norm.var.fill_(3.999)
    assert norm(column(0, 2, 6)).squeeze(1).tolist() == pytest.approx([-1, 0, 2])
    assert (norm.mean.item(), norm.calls.item()) == (2.0, 0)


@pytest.mark.parametrize("after", [False, True])
def test_a_network_is_that_of_torchs_layers(after: bool) -> None:
    mlp = MLP(
        n_in=3, n_out=2, hidden=[7], activation="tanh", norm="batch", norm_after_activation=after, generator=stream()
    )
    linear, output = nn.Linear(3, 7), nn.Linear(7, 2)
    for twin, layer in ((linear, mlp.hidden[0]), (output, mlp.output)):
        twin.weight.data, twin.bias.data = layer.weight.data.T, layer.bias.data[0]
    norms = [nn.BatchNorm1d(n, eps=1e-3, momentum=0.01) for n in (3, 7)]
    middle = [nn.Tanh(), norms[1]] if after else [norms[1], nn.Tanh()]
    twin = nn.Sequential(norms[0], linear, *middle, output)
    for seed in range(3):
        x = 3 * torch.randn(50, 3, generator=stream(seed)) + 1
        assert torch.allclose(mlp(x, training=True), twin(x), atol=1e-5)
    for ours, theirs in zip((mlp.input_norm, mlp.norms[0]), norms, strict=True):
        assert torch.allclose(ours.mean[0], theirs.running_mean, atol=1e-6)
        theirs.running_var.copy_(ours.var[0])  # which is unbiased there
    assert torch.allclose(mlp(x), twin.eval()(x), atol=1e-5)


@pytest.mark.parametrize("keys", [{}, {"norm_after_activation": True}, {"unit_norm": True, "dropout": 0.0}])
def test_a_stack_computes_and_moves_as_its_members_do(keys: dict[str, Any]) -> None:
    stack, member = BATCH(n_in=3, n_out=4, lead=(2, 3), generator=stream(), **keys), BATCH(n_in=3, n_out=4, **keys)
    x = torch.randn(2, 1, 5, 3, generator=stream(1))
    before = deepcopy(stack.state_dict())
    out, after = stack(x, training=True), stack.state_dict()
    for s in range(2):
        for e in range(3):
            member.load_state_dict({name: t[s, e] if t.dim() else t for name, t in before.items()})
            assert torch.allclose(out[s, e], member(x[s, 0], training=True), atol=1e-6)
            for name, tensor in member.state_dict().items():
                assert torch.allclose(tensor, after[name][s, e] if tensor.dim() else after[name]), name


def test_the_first_critic_alone_is_normalised_as_all_are() -> None:
    critics = Critics(BOX, BATCH, Flat(spec=BOX), 1, 2, stream())
    obs, action = torch.randn(5, 3, generator=stream(1)), torch.randn(5, 2, generator=stream(2))
    critics(obs, action, training=True)
    assert torch.allclose(critics.first(obs, action), critics(obs, action)[0], atol=1e-6)


def test_the_next_half_of_a_joint_pass_has_no_gradient_but_a_share_in_the_other_ones() -> None:
    critics = Critics(BOX, BATCH, Flat(spec=BOX), 1, 2, stream())
    obs, next_obs = torch.randn(2, 5, 3, generator=stream(1)).requires_grad_()
    action, next_action = torch.randn(2, 5, 2, generator=stream(2))
    out, next_out = critics.joint(obs, action, next_obs, next_action)
    assert out.shape == next_out.shape == (2, 5, 1)
    assert not next_out.requires_grad
    assert torch.autograd.grad(out.sum(), next_obs)[0].abs().max() > 0
    assert critics.net.input_norm.calls == 1


def test_targets_that_pass_over_batches_keep_statistics_of_their_own(make_agent: Any) -> None:
    agent = make_agent("sac", network=BATCH, tau=0.9)
    scramble(agent)
    for step in range(3):
        agent.update(batch_of(step, discrete=False), step)
    ours, theirs = agent.critics.net.norms[0], agent.target_critics.net.norms[0]
    assert ours.calls == theirs.calls == 3
    assert not torch.allclose(ours.mean, theirs.mean, rtol=0.05)


# Dropout


def test_units_are_dropped_at_the_rate_and_the_mean_stays() -> None:
    x = torch.ones(2, 256, 256)
    out = dropped(x, 0.3, torch.tensor(12345))
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.7)]
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.005)
    rows, columns = (out == 0).float().mean(dim=-1), (out == 0).float().mean(dim=-2)
    for share in (rows, columns):  # of 256 draws each
        assert share.std().item() == pytest.approx((0.3 * 0.7 / 256) ** 0.5, rel=0.15)


def test_masks_of_other_seeds_layers_and_halves_have_nothing_in_common() -> None:
    masks = [
        dropped(torch.ones(2, 64, 64), 0.5, torch.tensor(seed)).flatten() for seed in (0, 1, 2, 3, 2**31, 2**32 - 1)
    ]
    masks += [masks[0].roll(1), masks[0].roll(64), masks[0].roll(64 * 64)]
    correlation = torch.corrcoef(torch.stack(masks)) - torch.eye(len(masks))
    assert correlation.abs().max() < 0.06  # 5 standard deviations of 8192 draws


def test_a_network_drops_units_with_a_seed_alone() -> None:
    mlp = PLAIN(n_in=3, n_out=2, dropout=0.5, generator=stream())
    x, seed = torch.randn(5, 3, generator=stream(1)), torch.tensor(3)
    plain = PLAIN(n_in=3, n_out=2, generator=stream())
    assert torch.equal(mlp(x, training=True), plain(x))
    assert torch.equal(mlp(x, seed=seed), mlp(x, seed=seed))
    assert not torch.allclose(mlp(x, seed=seed), mlp(x))
    assert not torch.allclose(mlp(x, seed=seed), mlp(x, seed=seed + 7))


def test_dropout_is_drawn_anew_for_each_pass_of_each_update(make_agent: Any) -> None:
    agent = make_agent("sac", critic_network=functools.partial(PLAIN, dropout=0.5))
    seen: list[int] = []
    for critics in (agent.critics, agent.target_critics):
        critics.net.register_forward_pre_hook(lambda _, __, told: seen.append(int(told["seed"])), with_kwargs=True)
    for step in range(20):
        agent.update(batch_of(step, discrete=False), step)
    assert len(set(seen)) == len(seen) == 60
    assert max(seen) > 2**31


# Weights of norm 1


def test_weights_of_norm_one_at_first_and_after_each_step_but_not_of_the_output() -> None:
    mlp = BATCH(n_in=3, n_out=2, lead=(2,), unit_norm=True, generator=stream())
    optimizer = build(functools.partial(torch.optim.Adam, lr=0.1), mlp.parameters())
    for step in range(3):
        for layer in mlp.hidden:
            assert torch.allclose(layer.weight.norm(dim=-2), torch.ones(()), atol=1e-6)
        assert not torch.allclose(mlp.output.weight.norm(dim=-2), torch.ones(()), atol=1e-2)
        minimize(mlp(torch.randn(8, 3, generator=stream(step)), training=True).square().sum(), optimizer)


def test_a_column_of_three_and_four_becomes_one_of_norm_one_and_nothing_changes_behind_the_norm(exact: None) -> None:
    mlp = MLP(n_in=2, n_out=1, hidden=[1], activation="relu", norm="batch", generator=stream())
    mlp.hidden[0].weight.data = column(3, 4)
    x = torch.randn(6, 2, generator=stream(1))
    before = mlp(x, training=True)
    mlp.hidden[0].weight.unit_norm = True
    minimize(0 * before.sum(), build(functools.partial(torch.optim.SGD, lr=0.0), mlp.parameters()))
    assert mlp.hidden[0].weight.flatten().tolist() == pytest.approx([0.6, 0.8])
    assert torch.allclose(mlp(x, training=True), before, atol=1e-5)


def test_targets_are_not_normalised_again(make_agent: Any) -> None:
    agent = make_agent("sac", network=functools.partial(BATCH, unit_norm=True))
    agent.update(batch_of(0, discrete=False), 0)
    online, target = (critics.net.hidden[1].weight.norm(dim=-2) for critics in (agent.critics, agent.target_critics))
    assert torch.allclose(online, torch.ones(()), atol=1e-6)
    assert (target < 1 - 1e-5).any()


# Ensembles and delay


def test_every_pair_of_critics_is_drawn_equally_often(make_agent: Any) -> None:
    agent = make_agent("sac", critics=4, target_of=2)
    drawn = []
    agent.learn = lambda *noise: drawn.append(tuple(sorted(noise[4].tolist())))
    for step in range(1200):
        agent.update(batch_of(0, discrete=False), step)
    counts = [drawn.count((i, j)) for i in range(4) for j in range(i + 1, 4)]
    assert sum(counts) == 1200
    assert all(count == pytest.approx(200, abs=65) for count in counts)  # 5 standard deviations


def test_the_lowest_of_a_subset(make_agent: Any) -> None:
    agent = make_agent("sac", critics=3, target_of=2)
    out = torch.tensor([1.0, 5.0, 3.0]).reshape(3, 1, 1)
    assert agent.reduced(out[torch.tensor([1, 2])]).item() == 3


def test_twenty_updates_with_a_delay_of_twenty_move_the_actor_once(make_agent: Any) -> None:
    agent = make_agent("sac", policy_delay=20)
    moved = 0
    for step in range(40):
        before = agent.actor.net.output.weight.clone(), agent.log_alpha.clone()
        metrics, _ = agent.update(batch_of(step, discrete=False), step)
        changed = [
            not torch.equal(*pair)
            for pair in zip(before, (agent.actor.net.output.weight, agent.log_alpha), strict=True)
        ]
        assert changed == [("losses/actor_loss" in metrics)] * 2
        moved += changed[0]
    assert moved == 2
