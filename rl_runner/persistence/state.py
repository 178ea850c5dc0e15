"""The state of an object as nested dicts of tensors and numbers that need no pickle.

An agent either has `state_dict` and `load_state_dict`, or names its parts in `PARTS`: modules, optimizers, tensors,
random generators, counters, or anything that has those methods. Loading copies into the tensors that exist, so a
captured graph keeps seeing them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rl_runner.optim import parameters, traceable


def state_of(part: Any) -> Any:
    """The state of an object or of one of its parts; not copies."""
    match part:
        case int():
            return part
        case torch.Generator():
            return part.get_state()
        case Tensor():
            return part.detach()
        case Optimizer() if traceable(part):
            return [part.state[p] for p in parameters(part)]
    if hasattr(part, "PARTS"):
        return {name: state_of(getattr(part, name)) for name in part.PARTS}
    return part.state_dict()


def load_state(part: Any, state: Any) -> None:
    """Put a state back."""
    match part:
        case torch.Generator():
            part.set_state(state)
        case Tensor():
            part.detach().copy_(state)
        case Optimizer() if traceable(part):
            for p, saved in zip(parameters(part), state, strict=True):
                for key, value in saved.items():
                    part.state[p][key].copy_(value)
        case _ if hasattr(part, "PARTS"):
            for name in part.PARTS:
                if isinstance(getattr(part, name), int):
                    setattr(part, name, state.get(name, getattr(part, name)))  # one that is younger than the state
                else:
                    load_state(getattr(part, name), state[name])
        case _:
            part.load_state_dict(state)


def tensors(state: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """All tensors of nested dicts and lists, each with its path."""
    if isinstance(state, Tensor):
        return [(path, state)]
    children = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list) else ()
    return [found for key, child in children for found in tensors(child, f"{path}/{key}")]
