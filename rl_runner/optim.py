"""Gradient steps and target updates: the only places where parameters change."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

OptimizerFactory = Callable[..., Optimizer]
# PyTorch imports its compiler, two seconds, to have it pass over this method, which every constructor calls.
Optimizer.add_param_group = inspect.unwrap(Optimizer.add_param_group)  # type: ignore[method-assign]


def build(factory: OptimizerFactory, params: Sequence[Any], lr: float | None = None) -> Optimizer:
    """The configured optimizer over tensors or PyTorch's groups of them, its state allocated; `lr` beats its own."""
    optimizer = factory(params=list(params)) if lr is None else factory(params=list(params), lr=lr)
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


def linear_decay(step: int, total_steps: int) -> float:
    """The factor of the learning rates that falls in a straight line from 1 to 0 over the run."""
    return max(0.0, 1.0 - step / total_steps)


def with_linear_decay(update: Callable[[int], None], agent: object, total_steps: int) -> Callable[[int], None]:
    """`update(step)` with all of the agent's learning rates scaled to the step.

    They become tensors, so that a graph reads them at every call instead of holding their first values.
    """
    # By position: loading the state of an optimizer from outside puts new groups in the place of the old ones.
    groups = [(optimizer, i) for optimizer in optimizers(agent) for i in range(len(optimizer.param_groups))]
    initial = [optimizer.param_groups[i]["lr"] for optimizer, i in groups]
    for optimizer, i in groups:
        if traceable(optimizer):
            group = optimizer.param_groups[i]
            group["lr"] = torch.tensor(group["lr"], device=group["params"][0].device)

    def decayed(step: int) -> None:
        factor = linear_decay(step, total_steps)
        for (optimizer, i), lr in zip(groups, initial, strict=True):
            group = optimizer.param_groups[i]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(factor * lr)
            else:
                group["lr"] = factor * lr
        update(step)

    return decayed


def minimize(loss: Tensor, optimizer: Optimizer, max_norm: float | None = None) -> Tensor:
    """One gradient step on the optimizer's own parameters; returns the gradient norm before clipping.

    No other one receives a gradient, so nothing has to be frozen or zeroed around it; an unused one receives zeros.
    """
    grads = torch.autograd.grad(loss, parameters(optimizer), materialize_grads=True)
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    if max_norm is not None:
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        grads = tuple(g * scale for g in grads)
    with torch.no_grad():
        apply(optimizer, grads)
    return norm


def polyak(target: nn.Module, online: nn.Module, tau: float) -> None:
    """θ⁻ ← τθ + (1-τ)θ⁻, in place (Lillicrap et al. 2016)."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)


def hard_copy(target: nn.Module, online: nn.Module) -> None:
    """θ⁻ ← θ, in place (Mnih et al. 2015)."""
    with torch.no_grad():
        torch._foreach_copy_(list(target.parameters()), list(online.parameters()))


def traceable(optimizer: Optimizer) -> bool:
    """Whether `apply` can be captured in one graph: true for the shipped optimizers.

    Not with dampening, which PyTorch leaves out of the first step: it would need a branch in the graph.
    """
    return type(optimizer) in FUNCTIONAL and not any(group.get("dampening") for group in optimizer.param_groups)


def initial_state(optimizer: Optimizer, p: Tensor) -> dict[str, Tensor]:
    """The state that PyTorch's optimizer would create at its first step, so that a graph sees it from the start."""
    group = optimizer.param_groups[0]
    zeros, step = torch.zeros_like, torch.zeros((), device=p.device)
    match optimizer:
        case Adam() | AdamW():
            state = {"step": step, "exp_avg": zeros(p), "exp_avg_sq": zeros(p)}
            return state | ({"max_exp_avg_sq": zeros(p)} if group["amsgrad"] else {})
        case RMSprop():
            state = {"step": step, "square_avg": zeros(p)}
            state |= {"momentum_buffer": zeros(p)} if group["momentum"] > 0 else {}
            return state | ({"grad_avg": zeros(p)} if group["centered"] else {})
        case SGD():
            return {"momentum_buffer": zeros(p)} if group["momentum"] > 0 else {}
    return {}


def apply(optimizer: Optimizer, grads: Sequence[Tensor]) -> None:
    """One step of the optimizer: by its functional form, which a graph can hold, or from outside by `step()`."""
    if not traceable(optimizer):
        for p, grad in zip(parameters(optimizer), grads, strict=True):
            p.grad = grad
        optimizer.step()
        return
    remaining = iter(grads)
    for group in optimizer.param_groups:
        params = group["params"]
        FUNCTIONAL[type(optimizer)](optimizer, group, params, [next(remaining) for _ in params])


def _states(optimizer: Optimizer, params: list[Tensor], name: str) -> list[Any]:
    # To be passed by position: under torch.compile the functional forms look for the step counts there.
    return [optimizer.state[p][name] for p in params if name in optimizer.state[p]]


def _adam(optimizer: Optimizer, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
    adam(
        params,
        grads,
        _states(optimizer, params, "exp_avg"),
        _states(optimizer, params, "exp_avg_sq"),
        _states(optimizer, params, "max_exp_avg_sq"),
        _states(optimizer, params, "step"),
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        capturable=params[0].is_cuda,
        decoupled_weight_decay=group["decoupled_weight_decay"],
        **{key: group[key] for key in ("amsgrad", "lr", "weight_decay", "eps", "maximize", "foreach")},
    )


def _rmsprop(optimizer: Optimizer, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
    keys = ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize", "foreach")
    rmsprop(
        params,
        grads,
        _states(optimizer, params, "square_avg"),
        _states(optimizer, params, "grad_avg"),
        _states(optimizer, params, "momentum_buffer"),
        _states(optimizer, params, "step"),
        capturable=params[0].is_cuda,
        **{key: group[key] for key in keys},
    )


def _sgd(optimizer: Optimizer, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
    buffers = _states(optimizer, params, "momentum_buffer") or [None] * len(params)
    keys = ("lr", "weight_decay", "momentum", "dampening", "nesterov", "maximize", "foreach")
    sgd(params, grads, buffers, **{key: group[key] for key in keys})


FUNCTIONAL: dict[type, Callable[[Optimizer, dict[str, Any], list[Tensor], list[Tensor]], None]] = {
    Adam: _adam,
    AdamW: _adam,
    RMSprop: _rmsprop,
    SGD: _sgd,
}
