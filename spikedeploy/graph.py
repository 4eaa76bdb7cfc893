"""A torch model as a plain list of calls, and what runs such a list.

Every function and method comes from the two fixed tables below; no source text is generated or executed, so a graph read from a file can do
nothing that these tables do not list.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikedeploy.errors import ModelRefused, message
from spikedeploy.nn.overtime import forget, stack


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of another node, inside the arguments of a node."""

    node: str


@dataclass(frozen=True, slots=True)
class Node:
    """One call. op: `input`, `module` (target: dotted path), `function`, `method` (target: a name of the tables), `tensor` (a parameter
    or constant
    of the model by path), `over_time` (target: path of a step graph), `output` (args[0] is what the model returns)."""

    name: str
    op: str
    target: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The calls of one forward pass in order, and the step graphs of its `over_time` nodes by path."""

    nodes: tuple[Node, ...]
    steps: Mapping[str, Graph] = field(default_factory=dict)

    def users(self, name: str) -> list[Node]:
        """The nodes that read node `name`."""
        return [node for node in self.nodes if any(ref.node == name for ref in refs((node.args, node.kwargs)))]


def needed(graph: Graph) -> Graph:
    """The graph without the calls whose values nobody uses."""
    alive: set[str] = set()
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.op in ("input", "output") or node.name in alive:
            alive |= {ref.node for ref in refs((node.args, node.kwargs))}
            kept.append(node)
    return Graph(tuple(reversed(kept)), {path: needed(step) for path, step in graph.steps.items()})


def refs(value: Any) -> Iterator[Ref]:
    """Every reference inside a nested argument."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from refs(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from refs(item)
    elif isinstance(value, slice):
        yield from refs((value.start, value.stop, value.step))


def map_refs(value: Any, change: Callable[[Ref], Any]) -> Any:
    """The nested argument with every reference replaced."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(map_refs(item, change) for item in value)
    if isinstance(value, Mapping):
        return {key: map_refs(item, change) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(map_refs(item, change) for item in (value.start, value.stop, value.step)))
    return value


ATTRIBUTES = frozenset({"shape", "ndim", "values", "indices", "dtype", "device", "mT"})


def _getattr(value: Any, name: str) -> Any:
    if name not in ATTRIBUTES:
        raise ModelRefused(message(f"attribute '{name}'", "it is not one that a stored model may read", ", ".join(sorted(ATTRIBUTES))))
    return getattr(value, name)


def _table(prefix: str, module: Any, names: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    return {f"{prefix}.{name}": getattr(module, name) for name in names}


def _accumulate(x: Tensor) -> Any:
    """The running sum of a loop, `total = total + x_t` from zero, in that order."""
    total: Any = 0
    for x_t in x.unbind(0):
        total = total + x_t
    return total


# fmt: off
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "getattr": _getattr,
    "accumulate": _accumulate,
    **_table(
        "operator",
        operator,
        (
            "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "matmul", "getitem", "iadd", "isub", "imul",
            "itruediv", "gt", "ge", "lt", "le", "eq",
        ),
    ),
    **_table(
        "torch",
        torch,
        (
            "add", "sub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "square", "tanh", "sigmoid", "relu", "clamp", "where",
            "softmax", "log_softmax", "flatten", "unflatten", "reshape", "unsqueeze", "squeeze", "permute", "transpose",
            "movedim", "swapaxes", "mean", "sum", "max", "min", "amax", "amin", "cat", "stack", "split", "chunk", "unbind",
            "cumsum", "cumprod", "flip", "roll", "diff", "sort", "matmul", "bmm", "einsum", "zeros_like", "ones_like", "rsub",
            "subtract", "multiply", "divide", "true_divide", "argmax", "norm", "std", "var", "prod", "median",
        ),
    ),
    **_table(
        "F",
        F,
        (
            "relu", "gelu", "silu", "sigmoid", "tanh", "dropout", "softmax", "log_softmax", "glu", "normalize", "layer_norm",
            "linear", "conv2d", "conv1d", "avg_pool2d", "max_pool2d", "pad", "leaky_relu", "elu", "selu", "softplus", "hardtanh",
            "hardsigmoid", "hardswish", "relu6", "mish", "embedding", "batch_norm", "adaptive_avg_pool2d",
            "scaled_dot_product_attention",
        ),
    ),
}
"""Every function that a graph may call. Being here lets a model be saved and loaded; whether it can be lowered is another table."""

METHODS = frozenset(
    (
        "add", "sub", "mul", "div", "neg", "abs", "exp", "log", "sqrt", "square", "tanh", "sigmoid", "relu", "clamp", "softmax",
        "log_softmax", "flatten", "unflatten", "reshape", "view", "view_as", "reshape_as", "unsqueeze", "squeeze", "permute",
        "transpose", "movedim", "swapaxes", "t", "mean", "sum", "max", "min", "amax", "amin", "split", "chunk", "unbind",
        "cumsum", "cumprod", "flip", "roll", "diff", "sort", "matmul", "contiguous", "size", "dim", "float", "double", "long",
        "int", "to", "type_as", "clone", "detach", "expand", "expand_as", "argmax", "norm", "std", "var", "prod", "median",
        "select", "narrow", "ndimension",
    )
)
"""Every tensor method that a graph may call."""
# fmt: on


class Traced(nn.Module):
    """A model rebuilt from a graph: `forward` interprets the nodes one by one, with autograd as usual."""

    def __init__(
        self, graph: Graph, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], example: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.graph_ = graph
        self.example = dict(example or {})
        self.paths = tuple(layers), tuple(tensors)
        for path, layer in layers.items():
            parent, name = self._parent(path)
            parent._modules[name] = layer
        for path, value in tensors.items():
            parent, name = self._parent(path)
            (parent._parameters if isinstance(value, nn.Parameter) else parent._buffers)[name] = value

    def _parent(self, path: str) -> tuple[Any, str]:
        """The module whose tables hold `path`; the tables are used directly, since a layer may be called like an attribute of modules."""
        *outer, name = path.split(".")
        here: Any = self
        for part in outer:
            here = here._modules.setdefault(part, nn.Module())
        return here, name

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The leaf layers by path."""
        for path in self.paths[0]:
            parent, name = self._parent(path)
            yield path, parent._modules[name]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that the graph reads directly, by path."""
        for path in self.paths[1]:
            parent, name = self._parent(path)
            yield path, (parent._parameters | parent._buffers)[name]

    def forward(self, x: Tensor) -> Any:
        return interpret(self.graph_, dict(self.layers()), dict(self.tensors()), x)


def interpret(
    graph: Graph,
    layers: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    x: Any,
    seen: Callable[[Node, Any], Any] = lambda node, value: value,
) -> Any:
    """Run the graph on `x`. `seen(node, value)` is called after each node and may replace the value."""
    values: dict[str, Any] = {}
    for node in graph.nodes:
        args = map_refs(node.args, lambda ref: values[ref.node])
        kwargs = map_refs(node.kwargs, lambda ref: values[ref.node])
        if node.op == "output":
            return args[0]
        if node.op == "over_time":
            value = _over_time(graph.steps[node.target], layers, tensors, args[0], _inside(node, seen))
        else:
            value = _call(node, layers, tensors, x, args, kwargs)
        values[node.name] = seen(node, value)
    raise ModelRefused(message("model", "its graph has no output", "one is needed"))


def _inside(loop: Node, seen: Callable[[Node, Any], Any]) -> Callable[[Node, Any], Any]:
    """`seen` for the nodes of a step graph: their names begin with the loop's."""
    return lambda node, value: seen(replace(node, name=f"{loop.name}/{node.name}"), value)


def _over_time(
    step: Graph, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], x: Tensor, seen: Callable[[Node, Any], Any]
) -> Any:
    """The step graph at every time step of `x`, states from zero; results stacked as `OverTime` does."""
    for node in step.nodes:
        if node.op == "module":
            forget(layers[node.target])
    return stack([interpret(step, layers, tensors, x_t, seen) for x_t in x.unbind(0)])


def _call(node: Node, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], x: Any, args: Any, kwargs: Any) -> Any:
    if node.op == "input":
        return x
    if node.op == "module":
        return layers[node.target](*args, **kwargs)
    if node.op == "function":
        return FUNCTIONS[node.target](*args, **kwargs)
    if node.op == "method":
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    if node.op == "tensor":
        return tensors[node.target]
    raise ModelRefused(message(f"operation '{node.name}'", f"its kind is '{node.op}'", "a kind that this version knows is needed"))
