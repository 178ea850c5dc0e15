"""Gradient steps and target updates: the only places where parameters change."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from rl_runner.layers import unit_norm_

OptimizerFactory = Callable[..., Optimizer]
# PyTorch imports its compiler, two seconds, to have it pass over this method, which every constructor calls.
Optimizer.add_param_group = inspect.unwrap(Optimizer.add_param_group)  # type: ignore[method-assign]


def build(factory: OptimizerFactory, params: Iterable[Any]) -> Optimizer:
    """The configured optimizer over tensors or PyTorch's groups of them, its state allocated."""
    optimizer: Any = factory(params=list(params))
    optimizer.of_unit_norm = [p for p in parameters(optimizer) if getattr(p, "unit_norm", False)]
    if traceable(optimizer):
        for p in parameters(optimizer):
            optimizer.state[p].update(initial_state(optimizer, p))
    return optimizer


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """The optimizer's own parameters, in order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def optimizers(owner: object) -> list[Optimizer]:
    """The optimizers among an object's attributes."""
    return [value for value in vars(owner).values() if isinstance(value, Optimizer)]


def lr_factor(schedule: str, end: float, total_steps: int, step: int) -> float:
    """What learning rates are multiplied by: it falls from 1 to `end` over the run, in a straight line or, if `cosine`,
    along half a wave (Loshchilov & Hutter 2017)."""
    left = max(0.0, 1.0 - step / total_steps)
    if schedule == "cosine":
        left = 0.5 * (1.0 - math.cos(math.pi * left))
    return end + (1.0 - end) * left


def with_schedule(
    update: Callable[[int], None], agent: object, factor: Callable[[int], float]
) -> Callable[[int], None]:
    """`update(step)` with all of the agent's learning rates multiplied by the factor of the step.

    They become tensors, so that a graph reads them at every call instead of holding their first values.
    """
    # By position: loading the state of an optimizer from outside puts new groups in the place of the old ones.
    groups = [(optimizer, i) for optimizer in optimizers(agent) for i in range(len(optimizer.param_groups))]
    initial = [optimizer.param_groups[i]["lr"] for optimizer, i in groups]
    for optimizer, i in groups:
        if traceable(optimizer):
            group = optimizer.param_groups[i]
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)

    def scheduled(step: int) -> None:
        for (optimizer, i), lr in zip(groups, initial, strict=True):
            group = optimizer.param_groups[i]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(factor(step) * lr)
            else:
                group["lr"] = factor(step) * lr
        update(step)

    return scheduled


def minimize(loss: Tensor, optimizer: Optimizer, max_norm: float | None = None) -> Tensor:
    """One gradient step on the optimizer's own parameters; returns the gradient norm before clipping.

    No other one receives a gradient, so nothing has to be frozen or zeroed around it; an unused one receives zeros.
    """
    if torch.is_autocast_enabled(loss.device.type):  # gradients have the precision of their products' forward pass
        with torch.autocast(loss.device.type, enabled=False):
            return minimize(loss, optimizer, max_norm)
    grads = torch.autograd.grad(loss, parameters(optimizer), materialize_grads=True)
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    if max_norm is not None:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        grads = tuple(g * scale for g in grads)
    with torch.no_grad():
        apply(optimizer, grads)
        for weight in getattr(optimizer, "of_unit_norm", ()):
            unit_norm_(weight)
    return norm


class Targets:
    """Target networks beside those that they follow, their tensors found once: walking through modules takes longer.

    Buffers, which a network may replace, are looked up by their owners; not without `statistics`.
    """

    def __init__(self, *pairs: tuple[nn.Module, nn.Module], statistics: bool = True):
        self.targets: list[Tensor] = [p for target, _ in pairs for p in target.parameters()]
        self.online: list[Tensor] = [p for _, online in pairs for p in online.parameters()]
        followed = pairs if statistics else ()
        owners = [owned for pair in followed for owned in zip(*(module.modules() for module in pair), strict=True)]
        self.buffers = [(*owned, name) for owned in owners for name, _ in owned[0].named_buffers(recurse=False)]

    @torch.no_grad()
    def polyak(self, tau: float) -> None:
        """θ⁻ ← τθ + (1-τ)θ⁻, in place (Lillicrap et al. 2016); running statistics alike, counts are copied."""
        torch._foreach_lerp_(self.targets, self.online, tau)
        for target, online in self._buffers():
            if target.is_floating_point():
                target.lerp_(online, tau)
            else:
                target.copy_(online)

    @torch.no_grad()
    def copy(self) -> None:
        """θ⁻ ← θ, buffers too, in place (Mnih et al. 2015)."""
        torch._foreach_copy_(self.targets, self.online)
        for target, online in self._buffers():
            target.copy_(online)

    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        return [(getattr(target, name), getattr(online, name)) for target, online, name in self.buffers]


def traceable(optimizer: Optimizer) -> bool:
    """Whether `apply` can be captured in one graph: true for the shipped optimizers.

    Not with dampening, which PyTorch leaves out of the first step: it would need a branch in the graph.
    """
    return type(optimizer) in FUNCTIONAL and not any(group.get("dampening") for group in optimizer.param_groups)


def initial_state(optimizer: Optimizer, p: Tensor) -> dict[str, Tensor]:
    """The state that PyTorch's optimizer would create at its first step, so that a graph sees it from the start."""
    group, form = optimizer.param_groups[0], FUNCTIONAL[type(optimizer)]
    names = [name for name, needed in form.states.items() if needed is None or group[needed]]
    names.sort(key=lambda name: name != "step")  # which PyTorch creates first
    return {name: torch.zeros_like(p) if name != "step" else torch.zeros((), device=p.device) for name in names}


def apply(optimizer: Optimizer, grads: Sequence[Tensor]) -> None:
    """One step of the optimizer: by its functional form, which a graph can hold, or from outside by `step()`."""
    if not traceable(optimizer):
        for p, grad in zip(parameters(optimizer), grads, strict=True):
            p.grad = grad
        optimizer.step()
        return
    form, remaining = FUNCTIONAL[type(optimizer)], iter(grads)
    for group in optimizer.param_groups:
        params = group["params"]
        # By position: under torch.compile the functional forms look for the step counts there.
        states = [[optimizer.state[p].get(name) for p in params] for name in form.states]
        options = {key: group[key] for key in form.keys}
        if "betas" in group:
            options["beta1"], options["beta2"] = group["betas"]
        if "step" in form.states:
            options["capturable"] = params[0].is_cuda
        form.function(params, [next(remaining) for _ in params], *states, **options)


class Form(NamedTuple):
    """An optimizer as a function of parameters, gradients, states and options."""

    function: Callable[..., None]
    states: dict[str, str | None]  # in the function's order; each with the option without which there is none
    keys: tuple[str, ...]


ADAM = Form(
    adam,
    {"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad", "step": None},
    ("lr", "weight_decay", "decoupled_weight_decay", "eps", "amsgrad", "maximize", "foreach"),
)
FUNCTIONAL: dict[type, Form] = {
    Adam: ADAM,
    AdamW: ADAM,
    RMSprop: Form(
        rmsprop,
        {"square_avg": None, "grad_avg": "centered", "momentum_buffer": "momentum", "step": None},
        ("lr", "weight_decay", "alpha", "eps", "momentum", "centered", "maximize", "foreach"),
    ),
    SGD: Form(
        sgd,
        {"momentum_buffer": "momentum"},
        ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize", "foreach"),
    ),
}
