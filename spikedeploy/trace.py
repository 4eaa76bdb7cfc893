"""From a live torch model to its graph: torch.fx records the calls of `forward`, the known layers as leaves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikedeploy.errors import ModelRefused, message
from spikedeploy.graph import ATTRIBUTES, FUNCTIONS, METHODS, Graph, Node, Ref, Traced
from spikedeploy.loops import Size, Sized, is_unrolled, refuse, roll
from spikedeploy.nn.overtime import OverTime
from spikedeploy.nn.spiking_ssm import SpikingSSM

_NAMES: dict[Any, str] = {function: name for name, function in reversed(list(FUNCTIONS.items()))} | {
    getattr: "getattr",
    torch.sigmoid: "torch.sigmoid",
    torch.relu: "torch.relu",
    torch.tanh: "torch.tanh",
}
OPEN = (nn.Sequential, nn.ModuleList, nn.ModuleDict, SpikingSSM)
"""Containers whose forward is traced instead."""


class _One(nn.Module):
    """Holds the model one level down: constants that fx stores, and a model that is itself a leaf, then need no special case."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    """Leaves are what torch and snnTorch made, and our own layers; a user's class is looked into."""

    sizes: Sequence[int] | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        home = type(m).__module__
        known = home.split(".")[0] in ("torch", "snntorch") or home.startswith("spikedeploy.nn")
        return known and not isinstance(m, OPEN)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Plain values are symbols; the input knows its sizes where they were given."""
        if node.op == "placeholder" and self.sizes is not None:
            return Sized(node, self).with_sizes(self.sizes)
        return super().proxy(node)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode inside the block, every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


Traces = tuple[Graph, dict[str, nn.Module], dict[str, Tensor]]


def trace(model: nn.Module, example: Sequence[int] | None = None) -> Traces:
    """The graph of `model`'s forward, its leaf layers by path, and the tensors it uses directly by path. Raises `ModelRefused`.

    example  sizes `(T, B, ...)` of an input: with them a loop over time in the forward is unrolled, and rolled up again
    """
    if isinstance(model, Traced):
        return model.graph_, dict(model.layers()), dict(model.tensors())
    try:
        found = _read(model, None)
    except ModelRefused as refused:
        if example is None or not isinstance(refused.__cause__, Exception):
            raise
        try:
            found = _read(model, (LOOP_STEPS, *example[1:]))
        except ModelRefused as again:
            raise (again if again.__cause__ is None else refused) from None
    graph, layers, tensors = found
    if is_unrolled(graph, layers):
        graph = roll(graph, layers, tensors)
    used = {node.target for g in (graph, *graph.steps.values()) for node in g.nodes if node.op == "tensor"}
    return _with_steps(graph, layers, {path: value for path, value in tensors.items() if path in used})


LOOP_STEPS = 4
"""How many steps a loop over the input's own length is unrolled to: one to start from, two to compare, one to end on."""


def _read(model: nn.Module, sizes: Sequence[int] | None) -> Traces:
    """What torch.fx records of the forward."""
    root = _One(model)
    tracer = _Tracer()
    tracer.sizes = sizes
    try:
        with evaluating(model):
            traced = tracer.trace(root)
    except ModelRefused:
        raise
    except Exception as error:  # a user's forward may raise anything when it is given a proxy
        raise ModelRefused(
            message(
                f"model ({type(model).__name__})",
                f"its forward cannot be traced ({str(error).splitlines()[0] if str(error) else type(error).__name__})",
                "a forward of layer calls and tensor operations whose order does not depend on values is needed",
                "Use layers that take the whole sequence (T, B, C), or wrap a one-step network in spikedeploy.nn.OverTime.",
            )
        ) from error
    nodes = tuple(_node(node) for node in traced.nodes)
    layers = {n.target: root.get_submodule("model" if n.target == LONE else f"model.{n.target}") for n in nodes if n.op == "module"}
    tensors = {n.target: _tensor(root, n.target) for n in nodes if n.op == "tensor"}
    return Graph(nodes), layers, tensors


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
    op = {"placeholder": "input", "call_module": "module", "get_attr": "tensor", "output": "output"}[node.op]
    return Node(node.name, op, _strip(str(node.target)), args, kwargs)


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
    if isinstance(value, Size):
        raise refuse(
            f"'{node.name}' is given the number of {('steps', 'samples')[value.axis]} as a fixed number", "Use -1 or flatten(1) instead."
        )
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
