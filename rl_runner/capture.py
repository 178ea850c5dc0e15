"""Compiled functions without the cost of calling them: past Dynamo on a CPU, as CUDA graphs on a GPU.

Before each call Dynamo checks that nothing has changed on which its graph depends, and rebuilds Python's view of it:
70 µs, a fifth of a small network's update. Parameters, optimizer states and replay columns are written in place, so
after a few calls that found nothing changed, the graph is called with the same tensors again, only the arguments new.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Result = Tensor | tuple[tuple[str, ...], Tensor]  # or tags and a value for each
Key = tuple[Any, ...]  # the arguments that are no tensors, and the tensors' shapes; each has a graph of its own
WARM_UP = 3  # calls through Dynamo before the capture
# The wrapper around the kernels in C++ too, and without checks of shapes that cannot change: 40 µs less a call.
ON_CPU = {"cpp_wrapper": True, "size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}


def compiled(function: Callable[..., Result], backend: Any = "inductor") -> Callable[..., Result]:
    """`function` as one graph: an error if it is not capturable as a whole."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def tensors_and_key(arguments: Sequence[Any]) -> tuple[list[Tensor], Key]:
    """The tensors among the arguments, those in tuples too, and what tells which graph they need."""
    tensors: list[Tensor] = []
    key = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            tensors.append(argument)
        elif isinstance(argument, tuple):
            tensors.extend(argument)
        else:
            key.append(argument)
    key += [tensor.shape for tensor in tensors]
    return tensors, tuple(key)


def with_tensors(arguments: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """The arguments with these tensors in place of their own."""
    remaining = iter(tensors)

    def replaced(argument: Any) -> Any:
        if isinstance(argument, tuple):
            return tuple(next(remaining) for _ in argument)
        return next(remaining) if isinstance(argument, Tensor) else argument

    return [replaced(argument) for argument in arguments]


class Call(NamedTuple):
    """One call of a graph as Dynamo made it."""

    graph: Callable[..., Sequence[Any]]
    inputs: tuple[Any, ...]
    outputs: Sequence[Any]


@dataclass
class Direct:
    """A graph, the tensors it was called with, and which of them are a call's arguments."""

    graph: Callable[..., Sequence[Any]]
    inputs: list[Any]
    arguments: list[tuple[int, int]]  # (position among the inputs, position among the arguments)
    tags: tuple[str, ...] | None
    value: int  # position among the outputs

    def __call__(self, tensors: list[Tensor]) -> Result:
        inputs = self.inputs
        for place, argument in self.arguments:
            inputs[place] = tensors[argument]
        value = self.graph(*inputs)[self.value]
        return value if self.tags is None else (self.tags, value)


class CpuGraphs:
    """A compiled function of tensors and flags, called directly where repeated calls needed the same graph."""

    def __init__(self, function: Callable[..., Result]):
        self.function = compiled(function, self._compile)
        self.calls: dict[Key, list[Call]] = {}
        self.direct: dict[Key, Direct] = {}
        self.last: Call

    def __call__(self, *arguments: Any) -> Any:
        tensors, key = tensors_and_key(arguments)
        if direct := self.direct.get(key):
            return direct(tensors)
        result = self.function(*arguments)
        calls = self.calls.setdefault(key, [])
        if len(calls) < WARM_UP:
            calls.append(self.last)
            if len(calls) == WARM_UP and _repeatable(calls, result):
                self.direct[key] = _direct(self.last, tensors, result)
        return result

    def _compile(self, module: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Sequence[Any]]:
        from torch._inductor.compile_fx import compile_fx  # takes a second to import

        graph: Any = compile_fx(module, examples, config_patches=ON_CPU)

        def call(*inputs: Any) -> Sequence[Any]:
            self.last = Call(graph, inputs, graph(*inputs))
            return self.last.outputs

        return call


def _repeatable(calls: list[Call], result: Result) -> bool:
    """Whether Dynamo found the same graph each time, as it does unless something changes, and added nothing to it."""
    first, *_, last = calls
    return all(call.graph is first.graph for call in calls) and any(out is _value(result) for out in last.outputs)


def _direct(call: Call, tensors: list[Tensor], result: Result) -> Direct:
    arguments = [(i, k) for i, given in enumerate(call.inputs) for k, tensor in enumerate(tensors) if given is tensor]
    value = [out is _value(result) for out in call.outputs].index(True)
    return Direct(call.graph, list(call.inputs), arguments, None if isinstance(result, Tensor) else result[0], value)


def _value(result: Result) -> Tensor:
    return result if isinstance(result, Tensor) else result[1]


class CudaGraphs:
    """A compiled function of tensors and flags as CUDA graphs.

    Every graph reads its tensors from buffers of its own, into which a call copies; its outputs are overwritten by the
    next call. The first calls run without a graph, so that everything is compiled and allocated before the capture.
    """

    def __init__(self, function: Callable[..., Result]):
        self.function = compiled(function)
        self.buffers: dict[Key, list[Tensor]] = {}
        self.calls: dict[Key, int] = {}
        self.graphs: dict[Key, tuple[torch.cuda.CUDAGraph, Result]] = {}
        self.stream = torch.cuda.Stream()

    def __call__(self, *arguments: Any) -> Any:
        tensors, key = tensors_and_key(arguments)
        if key not in self.buffers:
            self.buffers[key] = [tensor.to("cuda", copy=True) for tensor in tensors]
        torch._foreach_copy_(self.buffers[key], tensors)
        if key not in self.graphs:
            self.calls[key] = self.calls.get(key, 0) + 1
            arguments = tuple(with_tensors(arguments, self.buffers[key]))
            if self.calls[key] <= WARM_UP:
                return self._on_side_stream(arguments)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                result = self.function(*arguments)
            self.graphs[key] = graph, result
        graph, result = self.graphs[key]
        graph.replay()
        return result

    def _on_side_stream(self, arguments: Sequence[Any]) -> Result:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.function(*arguments)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result
