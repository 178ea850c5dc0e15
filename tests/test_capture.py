"""A graph called past Dynamo gives the numbers of the function itself, whatever changes between calls, or an error."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch._inductor.exc import InductorError
from torch._inductor.utils import run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from rl_runner import capture
from rl_runner.capture import MOST, RECHECK, WARM_UP, CpuGraphs, CudaGraphs
from rl_runner.errors import RunFailed
from rl_runner.losses import project
from rl_runner.scalars import SharedOnce


def as_compiled(module: Callable[..., Any], examples: list[Any], **_: Any) -> Callable[..., Any]:
    """A stand-in for Inductor that knows its inputs, as kernels do, by where they start: all else is as it was."""
    layouts = [(x.dtype, x.shape, x.stride()) if isinstance(x, Tensor) else None for x in examples]

    def read(x: Any, layout: Any) -> Any:
        if layout is None:
            return x
        dtype, shape, stride = layout
        offset = x.storage_offset() * x.element_size() // dtype.itemsize
        return torch.empty(0, dtype=dtype).set_(x.untyped_storage(), offset, shape, stride)

    def call(*inputs: Any) -> Any:
        return module(*[read(x, layout) for x, layout in zip(inputs, layouts, strict=True)])

    return call


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", as_compiled)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Learner:
    """Reads and writes tensors and settings of its own."""

    sign: float = 1.0
    tags = ("sum",)

    def __init__(self) -> None:
        self.weight = torch.arange(16.0).reshape(4, 4)
        self.net = nn.Linear(4, 4)
        self.parts = {"scale": torch.tensor(2.0)}

    def learn(self, drawn: Any, x: Any, flag: Any) -> tuple[tuple[str, ...], Tensor]:
        self.weight.mul_(0.5)
        y = drawn[0] - 3 * drawn[1] if isinstance(drawn, tuple) else drawn
        z = x[0] * x[1] if isinstance(x, tuple) else 7 * x
        total = self.sign * self.parts["scale"] * y + z * self.weight + self.net.weight
        if flag is True:
            total = -total
        return self.tags, total + (torch.ones(()).double().sum() if torch.is_grad_enabled() else 0) + torch.zeros(())


def matrix(k: int) -> Tensor:
    return torch.arange(16.0).reshape(4, 4) * k + 1


def drawn() -> tuple[Any, ...]:
    return (matrix(1), matrix(2)), matrix(3), False


def replaced(**places: Any) -> Callable[[Learner], tuple[Any, ...]]:
    """The ordinary arguments but for some."""
    return lambda learner: tuple(
        places.get(name, old) for name, old in zip(("drawn", "x", "flag"), drawn(), strict=True)
    )


def changed(change: Callable[[Learner], Any]) -> Callable[[Learner], tuple[Any, ...]]:
    """The ordinary arguments, after the learner has changed."""

    def arguments(learner: Learner) -> tuple[Any, ...]:
        with torch.no_grad():
            change(learner)
        return drawn()

    return arguments


def same(tensor: Tensor) -> Callable[[Learner], tuple[Any, ...]]:
    return lambda learner: ((tensor, tensor), tensor, False)


long, half = torch.arange(100.0), torch.arange(200.0).reshape(100, 2)
imaginary = torch.complex(matrix(1), matrix(2))
with torch.inference_mode():
    inferred = matrix(4)

CHANGES: dict[str, Callable[[Learner], tuple[Any, ...]]] = {
    # Layout
    "transposed": replaced(x=matrix(3).t()),
    "transposed in a tuple": replaced(drawn=(matrix(1).t(), matrix(2))),
    "every second": replaced(x=half[:16, 0].reshape(4, 4), drawn=(half[:16].view(4, 8)[:, ::2], matrix(1))),
    "expanded": replaced(x=torch.arange(4.0).expand(4, 4)),
    "one number": replaced(x=torch.tensor(2.0).expand(4, 4)),
    "windows that overlap": replaced(x=long.as_strided((4, 4), (1, 1))),
    "from the middle": replaced(x=long[1:17].view(4, 4)),
    "not aligned": replaced(x=torch.frombuffer(bytearray(68), dtype=torch.float32, offset=4).view(4, 4)),
    "a row": replaced(x=torch.arange(4.0)),
    "nothing": replaced(x=torch.zeros(0, 1, 1)[:, :, :0].sum()),
    "no rows": lambda learner: ((torch.zeros(0, 4, 4), torch.zeros(0, 4, 4)), torch.zeros(0, 4, 4), False),
    "one more dimension": replaced(x=matrix(3).unsqueeze(0)),
    # Kind
    "double": replaced(x=matrix(3).double()),
    "whole numbers": replaced(x=matrix(3).int()),
    "truth values": replaced(x=matrix(3) > 9),
    "complex": replaced(x=imaginary),
    "conjugated": replaced(x=imaginary.conj()),
    "negated bits": replaced(x=imaginary.conj().imag),
    "negated, contiguous": replaced(x=torch._neg_view(matrix(3))),
    "needs gradients": replaced(x=matrix(3).requires_grad_()),
    "a parameter": replaced(x=nn.Parameter(matrix(3))),
    "from inference": replaced(x=inferred),
    # Identity
    "one tensor thrice": same(matrix(5)),
    "views of one": lambda learner: ((long[:16].view(4, 4), long[4:20].view(4, 4)), long[8:24].view(4, 4), False),
    "what it writes": lambda learner: (drawn()[0], learner.weight, False),
    "a view of what it writes": lambda learner: (drawn()[0], learner.weight[:], False),
    "transposed, of what it writes": lambda learner: (drawn()[0], learner.weight.t(), False),
    "its memory by NumPy": lambda learner: (drawn()[0], torch.from_numpy(learner.weight.numpy()), False),
    "a row of what it writes": lambda learner: (drawn()[0], learner.weight[2].expand(4, 4), False),
    "its parameter": lambda learner: (drawn()[0], learner.net.weight, False),
    "its scale": lambda learner: (drawn()[0], learner.parts["scale"].expand(4, 4), False),
    # Structure
    "a flag": replaced(flag=True),
    "a number for a flag": replaced(flag=1),
    "a fraction for a flag": replaced(flag=1.0),
    "no flag": replaced(flag=None),
    "zero for a flag": replaced(flag=0),
    "other nesting": replaced(drawn=matrix(1), x=(matrix(2), matrix(3))),
    "a list": replaced(drawn=[matrix(1), matrix(2)][0]),
    "all apart": replaced(drawn=matrix(1)),
    # What it reads besides
    "another weight": changed(lambda learner: setattr(learner, "weight", matrix(9))),
    "a transposed weight": changed(lambda learner: setattr(learner, "weight", learner.weight.t())),
    "another scale": changed(lambda learner: learner.parts.update(scale=torch.tensor(5.0))),
    "a scale of one row": changed(lambda learner: learner.parts.update(scale=torch.arange(4.0))),
    "another parameter": changed(lambda learner: setattr(learner.net, "weight", nn.Parameter(matrix(6)))),
    "another network": changed(lambda learner: setattr(learner, "net", nn.Linear(4, 4).requires_grad_(False))),
    "assigned": changed(lambda learner: learner.net.load_state_dict(nn.Linear(4, 4).state_dict(), assign=True)),
    "other data": changed(lambda learner: setattr(learner.net.weight, "data", matrix(8).t())),
    "frozen": changed(lambda learner: learner.net.requires_grad_(False)),
    "in place": changed(lambda learner: learner.net.weight.add_(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_late_the_numbers_are_the_functions_own(kernels: None, name: str) -> None:
    learner = Learner()
    twin = copy.deepcopy(learner)
    function = CpuGraphs(learner.learn)

    def compare(arguments: Callable[[Learner], tuple[Any, ...]]) -> None:
        torch.manual_seed(0)  # for new networks
        given = arguments(learner)
        torch.manual_seed(0)
        tags, expected = twin.learn(*arguments(twin))
        result = function(*given)
        assert result[0] == tags
        torch.testing.assert_close(result[1], expected)
        torch.testing.assert_close(learner.weight, twin.weight)

    ordinary = replaced()
    for _ in range(WARM_UP + 3):
        compare(ordinary)
    for _ in range(WARM_UP + 2):
        compare(CHANGES[name])
    for _ in range(2):
        compare(ordinary)
    assert function.trusted, "never called past Dynamo"


CONSTANTS = {"sign": -1.0, "tags": ("total",)}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_that_changes_early_is_followed_and_late_an_error(kernels: None, name: str) -> None:
    learner, twin = Learner(), Learner()
    twin.net = learner.net
    function = CpuGraphs(learner.learn)
    for i in range(3 * RECHECK):  # now this way, now that
        if i % 5 == 2:
            for one in (learner, twin):
                setattr(
                    one,
                    name,
                    CONSTANTS[name] if getattr(one, name) == getattr(Learner, name) else getattr(Learner, name),
                )
        tags, expected = twin.learn(*drawn())
        found, value = function(*drawn())
        assert found == tags
        torch.testing.assert_close(value, expected)
    function = CpuGraphs(learner.learn)
    for _ in range(WARM_UP + 2):
        function(*drawn())
    setattr(learner, name, "other")
    with pytest.raises(RunFailed, match=r"learn reads something that has changed .*accelerate=eager"):
        [function(*drawn()) for _ in range(RECHECK)]


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta")],
    ids=["no-grad", "inference", "autocast", "device"],
)
def test_what_holds_for_the_whole_process_is_followed(
    kernels: None, around: Callable[[], AbstractContextManager[Any]]
) -> None:
    def product(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b + (1 if torch.is_grad_enabled() else 0) + torch.zeros(())).requires_grad_(False)

    function, a, b = CpuGraphs(product), torch.randn(4, 4), torch.randn(4, 4)
    for context in (nullcontext, around, nullcontext):
        for _ in range(WARM_UP + 1):
            with context():
                try:
                    expected = product(a, b)
                except RuntimeError:  # two devices in one sum
                    with pytest.raises(Exception, match="device"):
                        function(a, b)
                    continue
                result = function(a, b)
            assert result.dtype == expected.dtype
            torch.testing.assert_close(result, expected)


def test_the_default_dtype_is_followed(kernels: None) -> None:
    def filled(a: Tensor) -> Tensor:
        return a.sum() + torch.full((2,), 1 / 3)

    function = CpuGraphs(filled)
    for dtype in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            assert all(function(torch.ones(2, dtype=torch.int64)).dtype == dtype for _ in range(WARM_UP + 1))
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "returned",
    [
        lambda x, w: ("argument", x),
        lambda x, w: ("a view of it", x[1:]),
        lambda x, w: ("the argument, converted to what it is", x.float()),
        lambda x, w: ("what it wrote", w),
        lambda x, w: ("a view of that", w[0]),
        lambda x, w: ("two", (x + 1, x + w)),
        lambda x, w: ("one twice", (x + 1,) * 2),
        lambda x, w: ("nested", {"a": x + 1, "b": [w * 2, None]}),
        lambda x, w: (("a", "b"), torch.stack([x.sum(), w.sum()])),
    ],
)
def test_any_result_is_put_together_anew(kernels: None, returned: Callable[[Tensor, Tensor], Any]) -> None:
    ours, theirs = torch.ones(3), torch.ones(3)

    def make(weight: Tensor) -> Callable[[Tensor], Any]:
        def function(x: Tensor) -> Any:
            weight.mul_(1.5)
            return returned(x, weight)

        return function

    function, plain = CpuGraphs(make(ours)), make(theirs)
    for i in range(WARM_UP + 3):
        (*found, value), (*expected, other) = (f(torch.full((3,), float(i))) for f in (function, plain))
        assert found == expected
        torch.testing.assert_close(value, other)
    torch.testing.assert_close(ours, theirs)


def write(x: Tensor, y: Tensor) -> Tensor:
    x.add_(y)
    return x * y


def test_a_function_that_writes_to_its_arguments_is_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "inductor", lambda module, inputs, patches: aot_eager(module, inputs))
    function = CpuGraphs(write)
    for _ in range(WARM_UP + 1):
        x = torch.ones(3)
        assert function(x, torch.ones(3)).tolist() == [2, 2, 2]
        assert x.tolist() == [2, 2, 2]
    assert function(x, x[:]).tolist() == [16, 16, 16]


def test_more_graphs_than_dynamo_keeps(kernels: None) -> None:
    function = CpuGraphs(lambda x: x * 2)
    for _ in range(2):
        for n in range(2 * MOST):
            torch.testing.assert_close(function(torch.arange(float(n))), 2 * torch.arange(float(n)))
    assert len(function.graphs) == MOST


def test_graphs_of_one_code_are_kept_apart(kernels: None) -> None:
    def times(factor: Tensor) -> CpuGraphs:
        return CpuGraphs(lambda x: x * factor)

    functions = [times(torch.tensor(float(i))) for i in range(MOST + 2)]
    for _ in range(3):
        assert [function(torch.ones(1)).item() for function in functions] == list(range(MOST + 2))
    torch._dynamo.reset()  # what another run of the process does
    assert [function(torch.ones(1)).item() for function in functions] == list(range(MOST + 2))


def test_an_object_that_is_gone_takes_its_graph_along(kernels: None) -> None:
    owner = SimpleNamespace(optimizer=torch.optim.SGD([torch.ones(2)], lr=0.5))

    def step(x: Tensor) -> Tensor:
        (p,), lr = owner.optimizer.param_groups[0]["params"], owner.optimizer.param_groups[0]["lr"]
        return x - lr * p

    function = CpuGraphs(step)
    for lr in (0.5, 0.25, 0.125):
        owner.optimizer = torch.optim.SGD([torch.ones(2)], lr=lr)
        assert [function(torch.ones(2))[0].item() for _ in range(WARM_UP + 1)] == [1 - lr] * (WARM_UP + 1)


def test_inductors_own_kernels_follow_strides_offsets_and_alignment() -> None:
    torch._dynamo.reset()
    weight = torch.ones(37)

    def update(x: Tensor, y: Tensor) -> Tensor:
        weight.mul_(2)
        return 2 * x * weight + 3 * y

    function, pool = CpuGraphs(update), torch.arange(200.0)
    straight, y = pool[:37], pool[40:77]
    for x in [
        *[straight] * (WARM_UP + 1),
        pool[1:38],
        pool[3:40],
        y[:],
        pool[:74:2],
        straight,
        pool[2:76:2],
        weight[:],
    ]:
        weight.fill_(1)
        expected = 4 * (x + (x.data_ptr() == weight.data_ptr())) + 3 * y  # 1 more once it is doubled
        torch.testing.assert_close(function(x, y), expected)
    assert len(function.graphs) == 2


def test_a_scalar_that_many_elements_share_is_worked_out_once() -> None:
    """Adam's bias correction, which Inductor by itself writes into the loop over the elements."""

    def corrected(step: Tensor, moments: list[Tensor]) -> list[Tensor]:
        return torch._foreach_div(moments, [1 - 0.9**step] * len(moments))

    arguments = (torch.tensor(3.0), [torch.randn(40, 40), torch.randn(7)])
    result, (code,) = run_and_get_code(capture.compiled(corrected, capture.on_cpu), *arguments)
    for got, want in zip(result, corrected(*arguments), strict=True):
        torch.testing.assert_close(got, want)
    assert code.count("std::pow(") == 1
    assert code.index("std::pow(") < code.index("for(")


def test_atoms_after_a_step_are_worked_out_once_for_all_that_they_are_projected_on() -> None:
    support = torch.linspace(-2, 2, 21)
    arguments = torch.rand(5, 21), torch.randn(5), torch.rand(5), support
    module = make_fx(project)(*arguments)
    expected = module(*arguments)
    SharedOnce()(module.graph)
    module.recompile()
    nodes = list(module.graph.nodes)
    kept = [node.args[0] for node in nodes if node.target is torch.ops.aten.as_strided.default]
    atoms = [node for node in kept if node.meta["val"].shape == (5, 21)]
    assert [node.name.partition("_")[0] for node in atoms] == ["clamp"]
    assert torch.equal(module(*arguments), expected)


def test_a_call_goes_past_dynamo(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    function = CpuGraphs(lambda x, flag: x + 1 if flag else x - 1)
    function(torch.zeros(2), True), function(torch.zeros(2), False)
    monkeypatch.setattr(function, "dynamo", None)
    monkeypatch.setattr(function, "eager", None)
    assert [function(torch.zeros(2), flag)[0].item() for flag in (True, False, True)] == [1, -1, 1]


# CUDA graphs, with a stand-in for the device


class Device:
    """What CUDA graphs ask of a GPU: a replay does again what was launched during the capture, in the same places."""

    def __init__(self) -> None:
        self.recording: list[Callable[[], None]] | None = None
        self.side, self.main = SimpleNamespace(), SimpleNamespace()
        for stream in (self.side, self.main):
            stream.wait_stream = lambda other: None
        self.current, self.log = self.main, list[str]()

    def launch(self, kernel: Callable[..., list[Tensor]], inputs: Any) -> list[Tensor]:
        assert self.current is self.side, "neither warmed up nor captured aside"
        before = [(x, x.clone(), x._version) for x in inputs]
        outputs = kernel(*inputs)
        self.log.append("launch")
        if self.recording is not None:
            self.recording.append(lambda: [out.copy_(new) for out, new in zip(outputs, kernel(*inputs), strict=True)])
            for x, value, version in before:  # a capture computes nothing
                if x._version != version:
                    x.copy_(value)
            for out in outputs:
                out.zero_()
        return outputs

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        self.current = stream
        yield
        self.current = self.main

    @contextmanager
    def capture(self, graph: Any, stream: Any) -> Iterator[None]:
        self.recording, self.current = graph.kernels, stream
        yield
        self.recording, self.current = None, self.main

    def graph(self) -> Any:
        def replay() -> None:
            self.log.append("replay")
            for kernel in graph.kernels:
                kernel()

        graph = SimpleNamespace(kernels=[], replay=replay)
        return graph


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    device = Device()
    for name, stand_in in {
        "Stream": lambda: device.side,
        "current_stream": lambda: device.main,
        "stream": device.on,
        "graph": device.capture,
        "CUDAGraph": device.graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    def compile_fx(module: Any, inputs: Any) -> Any:
        kernel = aot_eager(module, inputs)
        return lambda *inputs: device.launch(kernel, inputs)

    monkeypatch.setattr(capture, "inductor", compile_fx)
    torch._dynamo.reset()
    yield device
    torch._dynamo.reset()


def test_a_cuda_graph_is_captured_after_its_warm_up_and_replayed_with_new_arguments(device: Device) -> None:
    weight = torch.ones(3)

    def update(drawn: tuple[Tensor, ...], offset: Tensor, flipped: bool) -> tuple[tuple[str, ...], Tensor]:
        total = drawn[0] * weight + offset
        return ("total",), -total if flipped else total

    function = CudaGraphs(update, "cpu")
    results = []
    for i in range(2 * WARM_UP):
        weight.fill_(i)  # in place, as optimizers do
        tags, value = function((torch.full((3,), 2.0),), torch.tensor(float(i)), False)
        assert (tags, value.tolist()) == (("total",), [3.0 * i] * 3)
        results.append(value)
    assert device.log == ["launch"] * (WARM_UP + 1) + ["replay"] * WARM_UP
    assert results[-1] is not results[0]
    assert results[-1].data_ptr() == results[-2].data_ptr(), "the outputs are overwritten"
    assert function((torch.ones(3),), torch.tensor(0.0), True)[1].tolist() == [1.0 - 2 * WARM_UP] * 3
    assert len(function.buffers) == 1, "a flag needs no buffers of its own"
    assert device.log[-1] == "launch", "another flag, another graph"


MOVING = ["transposed", "expanded", "double", "one tensor thrice", "a view of what it writes", "a number for a flag"]
MOVING += ["other nesting", "another weight", "another network", "in place"]


@pytest.mark.parametrize("name", MOVING)
def test_whatever_changes_late_a_cuda_graph_computes_the_functions_own_numbers(device: Device, name: str) -> None:
    learner = Learner()
    twin = copy.deepcopy(learner)
    function = CudaGraphs(learner.learn, "cpu")
    for change in [replaced()] * (WARM_UP + 2) + [CHANGES[name]] * (WARM_UP + 2) + [replaced()] * 2:
        torch.manual_seed(0)
        given = change(learner)
        torch.manual_seed(0)
        tags, expected = twin.learn(*copy.deepcopy(change(twin)))  # as they were before it writes anything
        found, value = function(*given)
        assert found == tags
        torch.testing.assert_close(value, expected)
    assert device.log.count("replay") >= 2, "never replayed"


def test_a_cuda_graph_refuses_to_write_to_arguments(device: Device) -> None:
    with pytest.raises(RunFailed, match=r"write writes to its arguments: .*accelerate=eager"):
        CudaGraphs(write, "cpu")(torch.ones(3), torch.ones(3))


def test_a_library_that_was_cut_off_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run leaves it that is killed while it compiles; other errors are no business of ours."""
    library = tmp_path / "kernel.main.so"
    library.write_bytes(b"\x7fELF")

    def compile_fx(module: Any, inputs: Any, config_patches: Any) -> str:
        if library.exists():
            raise InductorError(ImportError("file too short", path=str(library)), None)
        return "graph"

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    assert capture.inductor(torch.fx.GraphModule({}, torch.fx.Graph()), []) == "graph"
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        capture.inductor(torch.fx.GraphModule({}, torch.fx.Graph()), [])
