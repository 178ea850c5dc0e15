"""Whether a compiled graph may be called with these inputs: it assumes more of them than it looks at."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Graph = Callable[..., Sequence[Any]]


class Unfit(Exception):  # noqa: N818 - it is no mistake
    """The graph would compute something else with these inputs."""


def fit(graph: Graph, inputs: Sequence[Any], arguments: Sequence[Tensor]) -> Graph:
    """`graph`, which was made for `inputs`, but Unfit if it would compute something else with those of a call.

    They must be tensors of the same types, shapes and strides, no two of them one; grad mode, autocast and the like
    must be the same. Besides, where Dynamo has no guard: no argument may lie in the memory of the other inputs, and no
    tensor may be one whose values are to be negated or conjugated when they are read.
    """
    ours = {id(argument) for argument in arguments}
    tensors = [(i, value) for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    spans = [(i, _span(value)) for i, value in tensors if id(value) in ours and value.numel()]
    others = [value for _, value in tensors if id(value) not in ours]
    bounds: list[int] = []  # where stretches of their memory start and end, in turn
    for start, end in sorted((other.data_ptr(), other.data_ptr() + _span(other)) for other in others if other.numel()):
        if bounds and start <= bounds[-1]:
            bounds[-1] = max(end, bounds[-1])
        else:
            bounds += [start, end]
    lazy = any(value.is_neg() or value.is_conj() for _, value in tensors)
    never = lazy or any(_overlaps(bounds, inputs[i].data_ptr(), span) for i, span in spans)
    alike: Callable[..., bool] | None = None

    def call(*inputs: Any, kept: Any = others) -> Sequence[Any]:  # kept, so that no argument can take their place
        nonlocal alike
        alike = alike or _guards(inputs)
        if never or not alike(*inputs):
            raise Unfit
        for i, span in spans:
            if _overlaps(bounds, inputs[i].data_ptr(), span):
                raise Unfit
        return graph(*inputs)

    return call


def _guards(inputs: Sequence[Any]) -> Callable[..., bool]:
    """Whether other inputs, and what holds for the whole process, are like these."""
    if not all(isinstance(value, Tensor) for value in inputs):
        return lambda *inputs: False
    sizes: Any = [list(value.shape) for value in inputs]
    strides: Any = [list(value.stride()) for value in inputs]
    guards, modes = torch._C._dynamo.guards, torch._C._len_torch_function_stack
    like = guards.TensorGuards(*inputs, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
    unchanged, depth = guards.GlobalStateGuard().check, modes()
    return lambda *inputs: like(*inputs) and unchanged() and modes() == depth


def _overlaps(bounds: list[int], start: int, span: int) -> bool:
    place = bisect_right(bounds, start)
    return place % 2 == 1 or place != bisect_left(bounds, start + span)


def _span(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    steps = ((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.element_size() * (1 + sum(steps))
