"""Compiled functions without the cost of calling them: past Dynamo, and on a GPU as CUDA graphs.

Dynamo keeps for each graph the guards that say when it holds, and code that gathers its inputs, calls it and puts the
result together. A call asks those guards and runs that code, so it follows whatever changes as Dynamo would; what
Dynamo does around them takes 60 µs, a fifth of a small network's update.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from rl_runner.errors import RunFailed

Graph = Callable[..., Sequence[Any]]
MOST = 8  # graphs of one function, as many as Dynamo keeps; a call that would need one more is eager
WARM_UP = 3  # calls without a CUDA graph, so that everything is compiled and allocated before the capture
# The wrapper around the kernels in C++ too, and without checks of what the guards check: 40 µs less a call.
ON_CPU = {"cpp_wrapper": True, "size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}


def compiled(function: Callable[..., Any], backend: Any = "inductor") -> Callable[..., Any]:
    """`function` as one graph: an error if it is not capturable as a whole."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def on_cpu(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Graph:
    return inductor(module, inputs, ON_CPU)


def inductor(module: torch.fx.GraphModule, inputs: Sequence[Any], patches: dict[str, Any] | None = None) -> Graph:
    from torch._inductor.compile_fx import compile_fx  # takes a second to import

    graph: Any = compile_fx(module, inputs, config_patches=patches)
    return graph


class CpuGraphs:
    """A function as compiled graphs that are called past Dynamo where their guards hold.

    Calls are eager where a graph would compute something else and Dynamo has no guard for it (`fit`), and all of them
    if the function writes to its arguments.
    """

    def __init__(self, function: Callable[..., Any], backend: Callable[..., Graph] = on_cpu):
        def call(*arguments: Any) -> Any:
            return function(*arguments)

        # A code object of its own, because Dynamo keeps graphs by code.
        call.__code__ = call.__code__.replace(co_name=getattr(function, "__name__", type(function).__name__))
        self.eager, self.backend, self.most = call, backend, MOST
        self.dynamo = compiled(call, self._compile)
        self.frame: dict[str, Any] = {"function": function}  # what the guards are asked about
        self.graphs: list[tuple[Any, Callable[[Any], bool], FunctionType]] = []  # guards, whether they hold, the code
        self.given: list[Tensor] = []  # the arguments while Dynamo compiles

    def __call__(self, *arguments: Any) -> Any:
        self.frame["arguments"] = arguments
        try:
            for guards, hold, code in self.graphs:
                if guards.cache_entry is not None and hold(self.frame):  # None: an object that they name is gone
                    return code(*arguments)
            if len(self.graphs) < self.most:
                return self._by_dynamo(arguments)
        except Unfit:
            pass
        return self.eager(*arguments)

    def _by_dynamo(self, arguments: tuple[Any, ...]) -> Any:
        self.given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        versions = [_version(tensor) for tensor in self.given]
        result = self.dynamo(*arguments)
        if versions != [_version(tensor) for tensor in self.given]:
            self.most = 0
        self.given = []
        self.graphs = [graph for graph in self.graphs if graph[0].cache_entry is not None]
        for entry in torch._dynamo.eval_frame._debug_get_cache_entry_list(self.eager.__code__)[:1]:  # the newest
            if all(entry.code is not code.__code__ for *_, code in self.graphs):
                self.graphs.append((entry.guard_manager, entry.guard_manager.root.check, self._function(entry.code)))
        del self.graphs[self.most :]
        return result

    def _function(self, code: CodeType) -> FunctionType:
        """Dynamo's code as a function, without a profile's entry and a wrapper that only cost time here."""
        names = {name: self.eager.__globals__[name] for name in code.co_names if name in self.eager.__globals__}
        names = {name: getattr(value, "_torchdynamo_orig_callable", value) for name, value in names.items()}
        names |= {"__builtins__": __builtins__, UTILS.__name__: UTILS}
        return FunctionType(code, names, self.eager.__name__, None, self.eager.__closure__)

    def _compile(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Graph:
        return fit(self.backend(module, inputs), inputs, self.given)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Utils(ModuleType):
    """`torch._dynamo.utils` for Dynamo's code, without the entry in a profile around gathering inputs."""

    record_pregraph_bytecode_enter = staticmethod(lambda: None)
    record_pregraph_bytecode_exit = staticmethod(lambda entry: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch._dynamo.utils, name)


UTILS = _Utils("__import_torch_dot__dynamo_dot_utils")


class Unfit(Exception):  # noqa: N818 - it is no mistake
    """A graph cannot be called with these inputs."""


def fit(graph: Graph, inputs: Sequence[Any], arguments: Sequence[Tensor]) -> Graph:
    """`graph`, but Unfit where its guards do not see that it would compute something else.

    That is when an argument lies in the memory of another input, and for tensors whose values are to be negated or
    conjugated when they are read.
    """
    ours = {id(argument) for argument in arguments}
    tensors = [(i, value) for i, value in enumerate(inputs) if isinstance(value, Tensor) and value.numel()]
    spans = [(i, _span(value)) for i, value in tensors if id(value) in ours]
    others = [value for _, value in tensors if id(value) not in ours]
    bounds: list[int] = []  # where stretches of their memory start and end, in turn
    for start, end in sorted((other.data_ptr(), other.data_ptr() + _span(other)) for other in others):
        if bounds and start <= bounds[-1]:
            bounds[-1] = max(end, bounds[-1])
        else:
            bounds += [start, end]

    def checked(*inputs: Any, kept: Any = others) -> Sequence[Any]:  # kept, so that no argument can take their place
        for i, span in spans:
            if _overlaps(bounds, inputs[i].data_ptr(), span):
                raise Unfit
        return graph(*inputs)

    def never(*inputs: Any) -> Sequence[Any]:
        raise Unfit

    lazy = any(value.is_neg() or value.is_conj() for _, value in tensors)
    return never if lazy or any(_overlaps(bounds, inputs[i].data_ptr(), span) for i, span in spans) else checked


def _overlaps(bounds: list[int], start: int, span: int) -> bool:
    place = bisect_right(bounds, start)
    return place % 2 == 1 or place != bisect_left(bounds, start + span)


def _span(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    steps = ((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.element_size() * (1 + sum(steps))


class CudaGraphs:
    """A function on a GPU, as `CpuGraphs`, its graphs replayed as CUDA graphs; the next call overwrites the outputs.

    A CUDA graph reads fixed places, so the arguments are copied into buffers, one for each structure, shape and dtype.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device | str = "cuda"):
        stream = torch.cuda.Stream()
        self.device, self.name = device, getattr(function, "__name__", type(function).__name__)
        self.buffers: dict[Any, list[Tensor]] = {}
        self.calls = CpuGraphs(function, lambda module, inputs: Replayed(inductor(module, inputs), stream))

    def __call__(self, *arguments: Any) -> Any:
        leaves, structure = tree_flatten(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (structure, *((tensor.shape, tensor.dtype) for tensor in tensors))
        if key not in self.buffers:
            self.buffers[key] = [torch.empty(t.shape, dtype=t.dtype, device=self.device) for t in tensors]
        with torch.no_grad():
            for buffer, tensor in zip(self.buffers[key], tensors, strict=True):
                buffer.copy_(tensor)
        remaining = iter(self.buffers[key])
        leaves = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        result = self.calls(*tree_unflatten(leaves, structure))
        if self.calls.most == 0:
            raise RunFailed(f"{self.name} writes to its arguments: let it copy them, or use accelerate=eager")
        return result


class Replayed:
    """A graph as a CUDA graph, captured anew when one of its inputs has moved."""

    def __init__(self, graph: Graph, stream: torch.cuda.Stream):
        self.graph, self.stream = graph, stream
        self.inputs: Sequence[Any] = ()  # kept, so that nothing else can take their places
        self.places: list[Any] = []
        self.calls = 0  # since one of them has moved
        self.captured: torch.cuda.CUDAGraph
        self.outputs: Sequence[Any]

    def __call__(self, *inputs: Any) -> Sequence[Any]:
        places = [value.data_ptr() if isinstance(value, Tensor) else value for value in inputs]
        if places != self.places:
            self.inputs, self.places, self.calls = inputs, places, 0
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._on_side_stream(inputs)
        if self.calls == WARM_UP + 1:
            self.captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.captured, stream=self.stream):
                self.outputs = self.graph(*inputs)
        self.captured.replay()
        return self.outputs

    def _on_side_stream(self, inputs: Sequence[Any]) -> Sequence[Any]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            outputs = self.graph(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return outputs
