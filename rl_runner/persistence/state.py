"""The state of an object as nested dicts of tensors and numbers that need no pickle.

The object names its parts in `PARTS`: modules, optimizers, tensors, random generators, counters, or anything with
`state_dict` and `load_state_dict`. Loading copies into the tensors that exist, so a captured graph keeps seeing them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rl_runner.optim import parameters, traceable


def pack(owner: Any, parts: Sequence[str] = ()) -> dict[str, Any]:
    """The state of every part by its name, those of `owner.PARTS` unless others are given; not copies."""
    return {name: _state_of(getattr(owner, name)) for name in parts or owner.PARTS}


def unpack(owner: Any, state: Mapping[str, Any], parts: Sequence[str] = ()) -> None:
    """Put a packed state back into the parts."""
    for name in parts or owner.PARTS:
        if isinstance(getattr(owner, name), int):
            setattr(owner, name, state[name])
        else:
            _restore(getattr(owner, name), state[name])


def _state_of(part: Any) -> Any:
    match part:
        case int():
            return part
        case torch.Generator():
            return part.get_state()
        case Tensor():
            return part.detach()
        case Optimizer() if traceable(part):
            return [part.state[p] for p in parameters(part)]
    return part.state_dict()


def _restore(part: Any, state: Any) -> None:
    match part:
        case torch.Generator():
            part.set_state(state)
        case Tensor():
            part.detach().copy_(state)
        case Optimizer() if traceable(part):
            for p, saved in zip(parameters(part), state, strict=True):
                for key, value in saved.items():
                    part.state[p][key].copy_(value)
        case _:
            part.load_state_dict(state)


def tensors(state: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """All tensors of nested dicts and lists, each with its path."""
    if isinstance(state, Tensor):
        return [(path, state)]
    children = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list) else ()
    return [found for key, child in children for found in tensors(child, f"{path}/{key}")]
