"""From a live torch model to its graph: torch.fx records the calls of `forward`, the known layers as leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikedeploy.errors import ModelRefused, message
from spikedeploy.graph import ATTRIBUTES, FUNCTIONS, METHODS, Graph, Node, Ref, Traced, needed
from spikedeploy.loops import BATCH, Size, is_unrolled, refuse, roll, with_batch_size
from spikedeploy.nn.overtime import OverTime, forget, remembering
from spikedeploy.tracer import Tracer

_NAMES: dict[Any, str] = {function: name for name, function in reversed(list(FUNCTIONS.items()))} | {
    getattr: "getattr",
    torch.sigmoid: "torch.sigmoid",
    torch.relu: "torch.relu",
    torch.tanh: "torch.tanh",
}


class _One(nn.Module):
    """Holds the model one level down: constants that fx stores, and a model that is itself a leaf, then need no special case."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode and at rest inside the block, every module's own mode and hidden state afterwards.

    At rest: snnTorch's neurons keep a membrane from call to call, and a deployed model starts from zero.
    """
    modes = [(module, module.training) for module in model.modules()]
    membranes = [(layer, layer._buffers["mem"]) for layer in remembering(model)]
    forget(model)
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, membrane in membranes:
            layer._buffers["mem"] = membrane


Traces = tuple[Graph, dict[str, nn.Module], dict[str, Tensor]]


def trace(model: nn.Module, example: Tensor | None = None) -> Traces:
    """The graph of `model`'s forward, its leaf layers by path, and the tensors it uses directly by path. Raises `ModelRefused`.

    example  an input `(T, B, ...)`, of which the sizes and dtype count: a forward may then ask for numbers of axes, and loop over time
    """
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if isinstance(model, Traced):
        return model.graph_, dict(model.layers()), dict(model.tensors())
    graph, layers, tensors = _first_that_works(model, example)
    if is_unrolled(graph, layers):
        graph = roll(graph, layers, tensors)
    graph = needed(graph)
    used = {node.target for g in (graph, *graph.steps.values()) for node in g.nodes if node.op in ("module", "tensor")}
    layers = {path: layer for path, layer in layers.items() if path in used}
    return _with_steps(graph, layers, {path: value for path, value in tensors.items() if path in used})


LOOP_STEPS = 4
"""How many steps a loop over the input's own length is unrolled to: one to start from, two to compare, one to end on."""


def _first_that_works(model: nn.Module, example: Tensor | None) -> Traces:
    """A trace beside a small run; beside a run on the example's own T and B; with the loop over time unrolled. Else the first error."""
    if example is None:
        return _read(model, Tracer(None))
    whole = tuple(example.shape)
    loop = (LOOP_STEPS, *whole[1:])
    ways: list[tuple[tuple[int, ...], tuple[int, ...] | None]] = [((3, 2, *whole[2:]), None), (whole, None), (loop, loop)]
    first: ModelRefused | None = None
    for shape, sizes in ways:
        try:
            return _read(model, Tracer(example.new_zeros(shape), sizes))
        except ModelRefused as error:
            if sizes is not None and error.__cause__ is None:
                first = error  # what is wrong with the loop says more than that there is one
            first = first or error
    assert first is not None
    raise first


def _read(model: nn.Module, tracer: Tracer) -> Traces:
    """What torch.fx records of the forward."""
    root = _One(model)
    with evaluating(model):
        traced = _traced(root, tracer)
        forget(model)  # what runs beside the trace leaves membranes, and the graph may refer to them
        nodes = with_batch_size(tuple(_node(node) for node in traced.nodes))
        layers = {_strip(str(n.target)): root.get_submodule(str(n.target)) for n in traced.nodes if n.op == "call_module"}
        tensors = {n.target: _tensor(root, n.target) for n in nodes if n.op == "tensor"}
    return Graph(nodes), layers, tensors


def _traced(root: _One, tracer: Tracer) -> fx.Graph:
    try:
        return tracer.trace(root)
    except ModelRefused:
        raise
    except Exception as error:  # a user's forward may raise anything when it is given a proxy
        raise ModelRefused(
            message(
                f"model ({type(root.model).__name__})",
                f"its forward cannot be traced ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
                "a forward of layer calls and tensor operations whose order does not depend on values is needed",
                "Use layers that take the whole sequence (T, B, C), or wrap a one-step network in spikedeploy.nn.OverTime.",
            )
        ) from error


def _with_steps(graph: Graph, layers: dict[str, nn.Module], tensors: dict[str, Tensor]) -> Traces:
    """Every `OverTime` layer becomes an `over_time` node with the graph of its one-step module."""
    loops = {path: layer for path, layer in layers.items() if isinstance(layer, OverTime)}
    steps = dict(graph.steps)
    for path, loop in loops.items():
        inner, inner_layers, inner_tensors = trace(loop.module)
        prefix = f"{path}.module"
        steps[path] = Graph(tuple(replace(n, target=f"{prefix}.{n.target}") if n.op in ("module", "tensor") else n for n in inner.nodes))
        if inner.steps:
            raise ModelRefused(message(f"layer '{path}' (OverTime)", "it holds another OverTime", "one loop over time is needed"))
        layers |= {f"{prefix}.{key}": layer for key, layer in inner_layers.items()}
        tensors |= {f"{prefix}.{key}": tensor for key, tensor in inner_tensors.items()}
    nodes = tuple(replace(node, op="over_time") if node.op == "module" and node.target in loops else node for node in graph.nodes)
    return Graph(nodes, steps), {path: layer for path, layer in layers.items() if path not in loops}, tensors


LONE = "layer"
"""The path of a model that is itself one layer."""


def _strip(target: str) -> str:
    return LONE if target == "model" else target.removeprefix("model.")


def _tensor(root: nn.Module, path: str) -> Tensor:
    value: Any = root if path.startswith("_tensor_constant") else getattr(root, "model")  # noqa: B009
    for part in path.split("."):
        value = getattr(value, part)
    if not isinstance(value, Tensor):
        raise ModelRefused(message(f"'{path}'", f"the forward uses a {type(value).__name__}", "a tensor is needed"))
    return value.detach() if path.startswith("_tensor_constant") else value


def _node(node: fx.Node) -> Node:
    args, kwargs = _plain(node, node.args), _plain(node, node.kwargs)
    if node.op == "call_function":
        name = _NAMES.get(node.target)
        if name is None:
            raise _unknown(node, getattr(node.target, "__name__", str(node.target)))
        if name == "getattr" and args[1] not in ATTRIBUTES:
            raise _unknown(node, f".{args[1]}")
        return Node(node.name, "function", name, args, kwargs)
    if node.op == "call_method":
        if node.target not in METHODS:
            raise _unknown(node, f".{node.target}()")
        return Node(node.name, "method", str(node.target), args, kwargs)
    if node.op == "output":
        args = (_as_returned(args[0], node.args[0]),)
    op = {"placeholder": "input", "call_module": "module", "get_attr": "tensor", "output": "output"}[node.op]
    return Node(node.name, op, _strip(str(node.target)), args, kwargs)


def _as_returned(value: Any, recorded: Any) -> Any:
    """A result with lists where the model returns lists: torch.fx records them as a type of its own."""
    if isinstance(value, dict):
        return {key: _as_returned(item, recorded[key]) for key, item in value.items()}
    if not isinstance(value, (tuple, list)):
        return value
    items = [_as_returned(item, other) for item, other in zip(value, recorded, strict=True)]
    return items if isinstance(recorded, list) else tuple(items)


def _unknown(node: fx.Node, what: str) -> ModelRefused:
    return ModelRefused(
        message(
            f"operation '{node.name}'",
            f"the forward calls {what}, which is not known",
            "layers, arithmetic, reshapes and a time reduction at the end are supported",
            "Write it with those, or leave it out of the saved model.",
        )
    )


def _plain(node: fx.Node, value: Any) -> Any:
    if isinstance(value, fx.Node):
        return Ref(value.name)
    if isinstance(value, Size) and value.axis == 1:
        return Ref(BATCH)
    if isinstance(value, Size):
        raise refuse(f"'{node.name}' is given the number of steps as a fixed number", "Use -1 or flatten(1) instead.")
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(node, item) for item in value) if type(value) in (tuple, list) else tuple(_plain(node, v) for v in value)
    if isinstance(value, dict):
        return {str(key): _plain(node, item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_plain(node, value.start), _plain(node, value.stop), _plain(node, value.step))
    if value is None or value is Ellipsis or isinstance(value, (bool, int, float, str, torch.dtype)):
        return value
    if isinstance(value, torch.device):
        return str(value)
    raise _unknown(node, f"an argument of type {type(value).__name__}")
