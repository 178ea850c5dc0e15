"""The floor of an update: its minimal list of matrix products and nothing else."""

import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from rl_runner.encoders import Flat
from rl_runner.envs import Spec
from rl_runner.networks import FEWEST_IN_BFLOAT16

Product = tuple[Tensor, Tensor]


def forward(batch: int, widths: Sequence[int], members: int) -> list[Product]:
    """x W of every layer."""
    return [p for i, o in pairwise(widths) for p in _products(members, (batch, i), (i, o))]


def weight_gradients(batch: int, widths: Sequence[int], members: int) -> list[Product]:
    """xᵀ g of every layer."""
    return [p for i, o in pairwise(widths) for p in _products(members, (i, batch), (batch, o))]


def input_gradients(batch: int, widths: Sequence[int], members: int) -> list[Product]:
    """g Wᵀ of every layer but the first, whose input needs no gradient."""
    pairs = pairwise(widths[1:])
    return [p for i, o in pairs for p in _products(members, (batch, o), (o, i))]


def _products(members: int, left: tuple[int, int], right: tuple[int, int]) -> list[Product]:
    return [(torch.randn(left), torch.randn(right)) for _ in range(members)]


def critic_products(algo: str, spec: Spec, hidden: Sequence[int], batch: int) -> list[Product]:
    """Every matrix product that the critic's step cannot do without, its target included."""
    critic, actor, E = _widths(algo, spec, hidden)
    return [
        *(forward(batch, actor, 1) if actor else []), *forward(batch, critic, E),  # the target
        *forward(batch, critic, E), *weight_gradients(batch, critic, E), *input_gradients(batch, critic, E),
    ]  # fmt: skip


def actor_products(algo: str, spec: Spec, hidden: Sequence[int], batch: int) -> list[Product]:
    """The same of the actor's step; TD3's actor climbs the first critic only."""
    critic, actor, E = _widths(algo, spec, hidden)
    if not actor:
        return []
    judges = 1 if algo == "td3" else E
    return [
        *forward(batch, actor, 1), *forward(batch, critic, judges), *input_gradients(batch, critic, judges),
        *_products(judges, (batch, hidden[0]), (hidden[0], spec.action_dim or 0)),  # down to the action
        *weight_gradients(batch, actor, 1), *input_gradients(batch, actor, 1),
    ]  # fmt: skip


def _widths(algo: str, spec: Spec, hidden: Sequence[int]) -> tuple[list[int], list[int], int]:
    n = Flat(spec=spec).n_out
    if algo == "dqn":
        return [n, *hidden, spec.num_actions or 0], [], 1
    dim = spec.action_dim or 0
    return [n + dim, *hidden, 1], [n, *hidden, 2 * dim if algo == "sac" else dim], 1 if algo == "ddpg" else 2


def floor_ms(algo: str, spec: Spec, hidden: Sequence[int], batch: int, precision: str = "highest") -> float:
    """CPU milliseconds that the matrix products of one update take; TD3 updates its actor every second time."""
    share = 0.5 if algo == "td3" else 1.0
    lists = [f(algo, spec, hidden, batch) for f in (critic_products, actor_products)]
    if precision == "bfloat16":
        lists = [[_rounded(*pair, batch) for pair in pairs] for pairs in lists]
    critic, actor = map(_time, lists)
    return critic + share * actor


def _rounded(left: Tensor, right: Tensor, batch: int) -> Product:
    """The factors in bfloat16, if the runner takes it for their layer."""
    weights = left.numel() * right.shape[1] // batch
    return (left.bfloat16(), right.bfloat16()) if weights >= FEWEST_IN_BFLOAT16 else (left, right)


def _time(pairs: list[Product], rounds: int = 40, blocks: int = 10) -> float:
    """The quickest of some blocks, in milliseconds: whatever slows the others is not the arithmetic."""
    ready = [(a, b, torch.empty(a.shape[0], b.shape[1], dtype=a.dtype)) for a, b in pairs]
    best = float("inf")
    for _ in range(blocks):
        started = time.process_time()
        for _ in range(rounds):
            for a, b, out in ready:
                torch.mm(a, b, out=out)
        best = min(best, (time.process_time() - started) / rounds)
    return best * 1e3
