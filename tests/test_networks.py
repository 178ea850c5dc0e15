"""Networks: shapes, PyTorch's own layers as the yardstick, and a stack of networks that is that many networks."""

import functools
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl_runner import losses
from rl_runner.algos.sac import GaussianActor
from rl_runner.encoders import Flat, Shared
from rl_runner.envs import Spec
from rl_runner.explore import DeterministicActor
from rl_runner.networks import (
    ACTIVATIONS,
    MLP,
    Critics,
    Dueling,
    QNetwork,
)
from rl_runner.optim import Targets, build, minimize

PLAIN = functools.partial(MLP, hidden=[7, 6], activation="relu", norm="none")
BOX = Spec((3,), torch.float32, None, None, 2, 1, None)
DISCRETE = Spec((3,), torch.float32, None, 4, None, 1, None)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torch_twin(mlp: MLP, activation: nn.Module) -> nn.Sequential:
    """The same network from PyTorch's layers, with the same parameters."""
    layers: list[nn.Module] = []
    for i, linear in enumerate([*mlp.hidden, mlp.output]):
        twin = nn.Linear(*linear.weight.shape)
        twin.weight.data, twin.bias.data = linear.weight.data.T, linear.bias.data[0]
        layers.append(twin)
        if i < len(mlp.hidden):
            if mlp.norms is not None:
                norm = nn.LayerNorm(linear.weight.shape[1])
                norm.weight.data, norm.bias.data = mlp.norms[i].weight.data[0], mlp.norms[i].bias.data[0]
                layers.append(norm)
            layers.append(activation)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize(
    ("name", "activation"),
    [("relu", nn.ReLU()), ("tanh", nn.Tanh()), ("silu", nn.SiLU()), ("gelu", nn.GELU()), ("elu", nn.ELU()),
     ("leaky_relu", nn.LeakyReLU())],
)  # fmt: skip
def test_mlp_is_the_one_of_torch_layers(name: Any, activation: nn.Module, norm: Any) -> None:
    assert name in ACTIVATIONS
    mlp = MLP(n_in=3, n_out=2, hidden=[7, 6], activation=name, norm=norm, generator=stream())
    for layer in mlp.norms or ():
        layer.weight.data.uniform_(0.5, 2.0, generator=stream(1))
        layer.bias.data.uniform_(-1.0, 1.0, generator=stream(2))
    x = torch.randn(5, 3, generator=stream(3))
    assert torch.allclose(mlp(x), torch_twin(mlp, activation)(x), atol=1e-6)


def test_every_parameter_starts_within_torchs_own_bounds() -> None:
    mlp = MLP(n_in=100, n_out=50, hidden=[400], activation="relu", norm="none", generator=stream())
    for layer, fan_in in ((mlp.hidden[0], 100), (mlp.output, 400)):
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= fan_in**-0.5
            assert values.std().item() == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.2)


def test_initialisation_comes_from_the_given_stream_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (PLAIN(n_in=3, n_out=2, generator=stream(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.output.weight, other.output.weight)
    assert torch.equal(before, torch.get_rng_state())


def test_dueling_advantages_are_centred() -> None:
    net = Dueling(n_in=3, n_out=4, hidden=[7], activation="tanh", norm="none", generator=stream())
    x = torch.randn(5, 3, generator=stream(1))
    trunk = torch.tanh(x @ net.hidden[0].weight + net.hidden[0].bias)
    value = trunk @ net.value.weight + net.value.bias
    advantage = trunk @ net.output.weight + net.output.bias
    for b in range(5):
        mean = sum(advantage[b, a].item() for a in range(4)) / 4
        for a in range(4):
            assert net(x)[b, a].item() == pytest.approx(value[b, 0].item() + advantage[b, a].item() - mean, abs=1e-6)


@pytest.mark.parametrize("kind", [MLP, Dueling])
@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("hidden", [[], [6]])
def test_a_stack_computes_what_its_members_compute(kind: type, norm: str, hidden: list[int]) -> None:
    make = functools.partial(kind, n_in=3, n_out=4, hidden=hidden, activation="silu", norm=norm)
    stack, member = make(lead=(2, 3), generator=stream()), make()
    x = torch.randn(2, 1, 5, 3, generator=stream(1))  # a population's critics take x.unsqueeze(-3)
    assert stack(x).shape == (2, 3, 5, 4)
    for s in range(2):
        for e in range(3):
            member.load_state_dict({name: values[s, e] for name, values in stack.state_dict().items()})
            assert torch.allclose(stack(x)[s, e], member(x[s, 0]), atol=1e-6)


def test_a_stack_of_networks_trains_as_separate_ones(float64: None) -> None:
    seeds, steps = 3, 20
    stack = PLAIN(n_in=3, n_out=1, lead=(seeds,), generator=stream())
    members = [PLAIN(n_in=3, n_out=1) for _ in range(seeds)]
    for s, member in enumerate(members):
        member.load_state_dict({name: values[s] for name, values in stack.state_dict().items()})
    adam: Any = functools.partial(torch.optim.Adam, lr=1e-2)
    stack_optimizer = build(adam, list(stack.parameters()))
    optimizers = [build(adam, list(member.parameters())) for member in members]
    weight = torch.ones(8)
    for step in range(steps):
        x, target = torch.randn(8, 3, generator=stream(step)), torch.randn(8, generator=stream(-step - 1))
        minimize(losses.critic_loss(stack(x).squeeze(-1), target, weight), stack_optimizer)
        for member, optimizer in zip(members, optimizers, strict=True):
            minimize(losses.critic_loss(member(x).squeeze(-1), target, weight), optimizer)
    for s, member in enumerate(members):
        for name, values in stack.state_dict().items():
            assert torch.allclose(values[s], member.state_dict()[name], rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize(
    ("spec", "obs", "want"),
    [
        (Spec((), torch.int64, 4, 2, None, 1, None), torch.tensor([2, 0]), [[0, 0, 1, 0], [1, 0, 0, 0]]),
        (Spec((2, 2), torch.uint8, None, 2, None, 2, None), torch.tensor([[[0, 51], [255, 0]]], dtype=torch.uint8),
         [[0, 0.2, 1, 0]]),
        (Spec((3,), torch.float32, None, 2, None, 1, None), torch.tensor([[1.0, 2.0, 3.0]]), [[1, 2, 3]]),
        (Spec((2, 2), torch.float32, None, 2, None, 1, None), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), [[1, 2, 3, 4]]),
        (Spec((), torch.float32, None, 2, None, 1, None), torch.tensor([5.0, 6.0, 7.0]), [[5], [6], [7]]),
    ],
)  # fmt: skip
def test_features(spec: Spec, obs: Tensor, want: list[list[float]]) -> None:
    encoder = Flat(spec=spec)
    got = encoder(obs)
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float32))
    assert got.shape[-1] == encoder.n_out


@pytest.mark.parametrize("size", [1, 2])
def test_critics_see_observation_and_action_and_differ(size: int) -> None:
    critics = Critics(BOX, PLAIN, Flat(spec=BOX), 1, size, stream())
    obs, action = torch.randn(5, 3, generator=stream(1)), torch.randn(5, 2, generator=stream(2))
    q = critics(obs, action)
    assert q.shape == (size, 5, 1)
    member = PLAIN(n_in=5, n_out=1)
    for e in range(size):
        member.load_state_dict({name: values[e] for name, values in critics.net.state_dict().items()})
        assert torch.allclose(q[e], member(torch.cat([obs, action], dim=1)), atol=1e-6)
    assert len({round(value.item(), 6) for value in q[:, 0, 0]}) == size


@pytest.mark.parametrize(
    ("build_network", "shape"),
    [
        (lambda: QNetwork(DISCRETE, PLAIN, Flat(spec=DISCRETE), 1, stream()), (5, 4, 1)),
        (lambda: QNetwork(DISCRETE, PLAIN, Flat(spec=DISCRETE), 3, stream()), (5, 4, 3)),
        (lambda: DeterministicActor(BOX, PLAIN, Flat(spec=BOX), stream()), (5, 2)),
    ],
)
def test_shapes_of_the_other_networks(build_network: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    network = build_network()
    assert network(torch.randn(5, 3, generator=stream(1))).shape == shape


def test_deterministic_actions_lie_within_bounds() -> None:
    actor = DeterministicActor(BOX, PLAIN, Flat(spec=BOX), stream())
    obs = 100 * torch.randn(50, 3, generator=stream(1))
    assert torch.equal(actor(obs), actor.net(obs).tanh())
    assert actor(obs).abs().max() <= 1


def test_gaussian_actor_splits_its_output_and_clamps_log_std() -> None:
    actor = GaussianActor(BOX, PLAIN, Flat(spec=BOX), stream(), bounds=(-0.1, 0.05))
    obs = 10 * torch.randn(50, 3, generator=stream(1))
    mean, log_std = actor(obs)
    out = actor.net(obs)
    assert torch.equal(mean, out[:, :2])
    assert torch.equal(log_std, out[:, 2:].clamp(-0.1, 0.05))
    assert (log_std == -0.1).any()
    assert (log_std == torch.tensor(0.05)).any()
    assert ((log_std > -0.1) & (log_std < 0.05)).any()


class Statistics(nn.Module):
    """Normalises by running statistics, which only learning moves; and looks at observations of any shape."""

    def __init__(self, *, spec: Spec, n_out: int, lead: tuple[int, ...], generator: torch.Generator | None):
        super().__init__()
        n_in = torch.Size(spec.obs_shape).numel() + (spec.action_dim or 0 if n_out == 1 else 0)
        self.body = MLP(n_in=n_in, n_out=n_out, lead=lead, generator=generator, hidden=[5], activation="relu",
                        norm="none")  # fmt: skip
        self.register_buffer("mean", torch.zeros(*lead, 1, n_in))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, *inputs: Tensor, training: bool = False) -> Tensor:
        x = torch.cat([x.flatten(1) for x in inputs], dim=-1)
        if training:
            self.mean.lerp_(x.mean(dim=0).detach().expand_as(self.mean), 0.5)
            self.seen += 1
        return self.body(x - self.mean)


def test_a_network_may_read_the_observation_and_keep_running_statistics() -> None:
    critics = Critics(BOX, Statistics, Flat(spec=BOX), 1, 2, stream())
    target = deepcopy(critics)
    obs, action = torch.randn(5, 3, generator=stream(1)), torch.randn(5, 2, generator=stream(2))
    before = critics(obs, action)
    assert torch.equal(critics(obs, action), before)
    assert torch.allclose(critics.first(obs, action), before[0])
    critics(obs, action, training=True)
    mean = torch.cat([obs, action], dim=1).mean(dim=0)
    assert torch.allclose(critics.net.mean, (0.5 * mean).expand(2, 1, 5))
    assert not torch.equal(critics(obs, action), before)
    assert torch.allclose(critics.first(obs, action), critics(obs, action)[0])
    assert torch.equal(target(obs, action), before)
    targets = Targets((target, critics))
    critics.net.mean = critics.net.mean.clone()  # as many networks do
    targets.polyak(0.5)
    assert torch.allclose(target.net.mean, (0.25 * mean).expand(2, 1, 5))
    assert target.net.seen == 1
    targets.copy()
    assert torch.equal(target(obs, action), critics(obs, action))


def test_an_actor_reads_the_critics_encoder_without_training_or_copying_it() -> None:
    class Scaled(Flat):
        """An encoder with a parameter."""

        def __init__(self, *, spec: Spec):
            super().__init__(spec=spec)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, obs: Tensor) -> Tensor:
            return self.scale * super().forward(obs)

    encoder = Scaled(spec=BOX)
    critics, actor = (
        Critics(BOX, PLAIN, encoder, 1, 2, stream()),
        DeterministicActor(BOX, PLAIN, Shared(encoder), stream()),
    )
    assert "encoder.scale" in dict(critics.named_parameters())
    assert "encoder.scale" not in actor.state_dict()
    obs, copy = torch.randn(5, 3, generator=stream(1)), deepcopy(actor)
    (gradient,) = torch.autograd.grad(actor(obs).sum(), encoder.scale, allow_unused=True, materialize_grads=True)
    assert gradient == 0
    encoder.scale.data.fill_(2.0)
    assert torch.equal(copy(obs), actor(obs))
    assert torch.equal(actor(obs), actor.net(2 * obs).tanh())
    assert not torch.equal(deepcopy(critics).encoder.scale, torch.ones(()))
