"""Compiled functions without the cost of calling them: past Dynamo, and on a GPU as CUDA graphs.

Dynamo keeps for each graph the guards that say when it holds, and code that gathers its inputs, calls it and puts the
result together. What it does around them takes 60 µs, a fifth of a small network's update, so they are used directly.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from rl_runner.errors import RunFailed
from rl_runner.graph_inputs import Graph, Unfit, fit

MOST = 8  # graphs of one function, as many as Dynamo keeps; a call that would need one more is eager
WARM_UP = 3  # calls before a graph is trusted, or captured as a CUDA graph, so that all is compiled and allocated
RECHECK = 53  # a prime, so that nothing that changes at every second or tenth call escapes for long
# The wrapper around the kernels in C++ too, and without checks of what the guards check: 40 µs less a call.
ON_CPU = {"cpp_wrapper": True, "size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}


def compiled(function: Callable[..., Any], backend: Any = "inductor") -> Callable[..., Any]:
    """`function` as one graph: an error if it is not capturable as a whole."""
    torch._dynamo.config.trace_autograd_ops = True
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def on_cpu(module: torch.fx.GraphModule, inputs: Sequence[Any]) -> Graph:
    from rl_runner.scalars import SharedOnce  # with Inductor, which takes a second to import

    return inductor(module, inputs, ON_CPU | {"post_grad_custom_post_pass": SharedOnce()})


def inductor(module: torch.fx.GraphModule, inputs: Sequence[Any], patches: dict[str, Any] | None = None) -> Graph:
    from torch._inductor.compile_fx import compile_fx  # takes a second to import
    from torch._inductor.exc import InductorError

    try:
        graph: Any = compile_fx(module, inputs, config_patches=patches)
    except (InductorError, ImportError) as error:
        reason = getattr(error, "inner_exception", error)
        if not isinstance(reason, ImportError) or reason.path is None:
            raise
        Path(reason.path).unlink(missing_ok=True)  # cut off in the cache when an earlier run was killed while compiling
        graph = compile_fx(module, inputs, config_patches=patches)
    return graph


class Made(NamedTuple):
    """A graph as Dynamo keeps it."""

    guards: Any
    code: FunctionType

    def holds(self, frame: dict[str, Any]) -> bool:
        """Whether it is for these arguments, and nothing has changed that it depends on."""
        return self.guards.cache_entry is not None and self.guards.check(frame)  # None: an object they name is gone


class CpuGraphs:
    """A function as compiled graphs that are called past Dynamo.

    At first every call asks the graphs' guards, all of them: 15 µs or, with cold caches, five times that. A graph that
    held `WARM_UP` times for one structure of arguments is trusted: then its inputs are looked at (`graph_inputs.py`) in
    every call, and what it holds for constant only in every `RECHECK`-th, which fails if that has changed. Calls are
    eager where no graph fits, and all of them if the function writes to its arguments.
    """

    def __init__(self, function: Callable[..., Any], backend: Callable[..., Graph] = on_cpu):
        def call(*arguments: Any) -> Any:
            return function(*arguments)

        # A code object of its own, because Dynamo keeps graphs by code.
        self.name = getattr(function, "__name__", type(function).__name__)
        call.__code__ = call.__code__.replace(co_name=self.name)
        self.function, self.eager, self.backend, self.most = function, call, backend, MOST
        self.given: list[Tensor] = []  # the arguments while Dynamo compiles
        self.graphs: list[Made] = []
        self.trusted: dict[Any, Made] = {}  # by structure
        self.held: dict[Any, list[Made]] = {}  # by structure, the graphs of its calls so far
        self.calls = 0

    @cached_property
    def dynamo(self) -> Callable[..., Any]:
        """The function by way of Dynamo, which is imported no sooner than it is needed."""
        return compiled(self.eager, self._compile)

    def __call__(self, *arguments: Any) -> Any:
        try:
            structure = _structure(arguments)
            graph = self.trusted[structure]
        except KeyError:  # none yet, or an argument of another kind
            return self._asked(arguments)
        if graph.guards.cache_entry is None:
            del self.trusted[structure]
            return self._asked(arguments)
        self.calls += 1
        holds = self.calls % RECHECK != 0 or graph.holds({"arguments": arguments, "function": self.function})
        try:
            result = graph.code(*arguments)
        except Unfit:
            return self._asked(arguments)
        if not holds:
            raise RunFailed(f"{self.name} reads something that has changed since it was captured: use accelerate=eager")
        return result

    def _asked(self, arguments: tuple[Any, ...]) -> Any:
        """A call of the graph whose guards hold."""
        frame = {"arguments": arguments, "function": self.function}
        try:
            for graph in self.graphs:
                if graph.holds(frame):
                    self._trust(graph, arguments)
                    return graph.code(*arguments)
            if len(self.graphs) < self.most:
                return self._by_dynamo(arguments)
        except Unfit:
            pass
        return self.eager(*arguments)

    def _trust(self, graph: Made, arguments: tuple[Any, ...]) -> None:
        """Trust a graph that alone has held for arguments of this structure, and would for tensors of their own."""
        try:
            held = self.held.setdefault(_structure(arguments), [])
        except KeyError:
            return
        if len(held) == WARM_UP:
            return
        held.append(graph)
        others = tree_map(lambda leaf: _like(leaf) if isinstance(leaf, Tensor) else leaf, arguments)
        alone = len(held) == WARM_UP and all(known is graph for known in held)
        if alone and graph.holds({"arguments": others, "function": self.function}):
            self.trusted[_structure(arguments)] = graph

    def _by_dynamo(self, arguments: tuple[Any, ...]) -> Any:
        self.given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        versions = [_version(tensor) for tensor in self.given]
        result = self.dynamo(*arguments)
        if versions != [_version(tensor) for tensor in self.given]:
            self.most = 0
        self.given = []
        self.graphs = [graph for graph in self.graphs if graph.guards.cache_entry is not None]
        for entry in torch._dynamo.eval_frame._debug_get_cache_entry_list(self.eager.__code__)[:1]:  # the newest
            if all(entry.code is not graph.code.__code__ for graph in self.graphs):
                self.graphs.append(Made(entry.guard_manager, self._function(entry.code)))
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


PLAIN = {kind: kind for kind in (bool, int, str, type(None))}


def _structure(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """How arguments are nested, and those that are no tensors; KeyError if one is of a kind that may change inside."""
    return tuple(
        [
            Tensor if isinstance(value, Tensor)
            else _structure(value) if type(value) is tuple
            else (PLAIN[type(value)], value)
            for value in values
        ]
    )  # fmt: skip


def _like(tensor: Tensor) -> Tensor:
    other = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return other.requires_grad_(tensor.requires_grad)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class _Utils(ModuleType):
    """`torch._dynamo.utils` for Dynamo's code, without the entry in a profile around gathering inputs."""

    record_pregraph_bytecode_enter = staticmethod(lambda: None)
    record_pregraph_bytecode_exit = staticmethod(lambda entry: None)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch._dynamo.utils, name)


UTILS = _Utils("__import_torch_dot__dynamo_dot_utils")


class CudaGraphs:
    """A function on a GPU, as `CpuGraphs`, its graphs replayed as CUDA graphs; the next call overwrites the outputs.

    A CUDA graph reads fixed places, so the arguments are copied into buffers, one for each structure, shape and dtype.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device | str = "cuda"):
        stream = torch.cuda.Stream()
        self.device = device
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
            raise RunFailed(f"{self.calls.name} writes to its arguments: let it copy them, or use accelerate=eager")
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
