"""A torch model as a plain list of calls: what `save` stores, `load` interprets and `convert` lowers.

torch.fx records the calls of `forward` with the known layers as leaves. The result is data: names, numbers and references, every function
and method taken from the two fixed tables below. No source text is generated or executed, so a graph read from a file can do nothing that
these tables do not list.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from spikedeploy.errors import ModelRefused, message


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


def _table(prefix: str, module: Any, names: str) -> dict[str, Callable[..., Any]]:
    return {f"{prefix}.{name}": getattr(module, name) for name in names.split()}


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "getattr": _getattr,
    **_table("operator", operator, "add sub mul truediv floordiv mod pow neg matmul getitem iadd isub imul itruediv gt ge lt le eq"),
    **_table(
        "torch",
        torch,
        "add sub mul div neg abs exp log sqrt square tanh sigmoid relu clamp where softmax log_softmax flatten unflatten reshape unsqueeze "
        "squeeze permute transpose movedim swapaxes mean sum max min amax amin cat stack split chunk unbind cumsum cumprod flip roll diff sort matmul bmm "
        "einsum zeros_like ones_like rsub subtract multiply divide true_divide argmax norm std var prod median",
    ),
    **_table(
        "F",
        F,
        "relu gelu silu sigmoid tanh dropout softmax log_softmax glu normalize layer_norm linear conv2d conv1d avg_pool2d max_pool2d pad "
        "leaky_relu elu selu softplus hardtanh hardsigmoid hardswish relu6 mish one_hot embedding batch_norm adaptive_avg_pool2d scaled_dot_product_attention",
    ),
}
"""Every function that a graph may call. Being here lets a model be saved and loaded; whether it can be lowered is another table."""

METHODS = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "neg",
        "abs",
        "exp",
        "log",
        "sqrt",
        "square",
        "tanh",
        "sigmoid",
        "relu",
        "clamp",
        "softmax",
        "log_softmax",
        "flatten",
        "unflatten",
        "reshape",
        "view",
        "view_as",
        "reshape_as",
        "unsqueeze",
        "squeeze",
        "permute",
        "transpose",
        "movedim",
        "swapaxes",
        "t",
        "mean",
        "sum",
        "max",
        "min",
        "amax",
        "amin",
        "split",
        "chunk",
        "unbind",
        "cumsum",
        "cumprod",
        "flip",
        "roll",
        "diff",
        "sort",
        "matmul",
        "contiguous",
        "size",
        "dim",
        "float",
        "double",
        "long",
        "int",
        "to",
        "type_as",
        "clone",
        "detach",
        "expand",
        "expand_as",
        "repeat",
        "argmax",
        "norm",
        "std",
        "var",
        "prod",
        "median",
        "select",
        "narrow",
        "ndimension",
    ]
)
"""Every tensor method that a graph may call."""

_NAMES: dict[Any, str] = {function: name for name, function in reversed(FUNCTIONS.items())} | {
    getattr: "getattr",
    torch.sigmoid: "torch.sigmoid",
    torch.relu: "torch.relu",
    torch.tanh: "torch.tanh",
}
SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _One(nn.Module):
    """Holds the model one level down: constants that fx stores, and a model that is itself a leaf, then need no special case."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    """Leaves are what torch and snnTorch made, and our own layers; a user's class is looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        home = type(m).__module__
        ours = home.split(".")[0] in ("torch", "snntorch") or home.startswith("spikedeploy.nn")
        return ours and not isinstance(m, SEQUENCES)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode inside the block, every module's own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, mode in modes:
            module.training = mode


def trace(model: nn.Module) -> tuple[Graph, Mapping[str, nn.Module], Mapping[str, Tensor]]:
    """The graph of `model`'s forward, its leaf layers by path, and the tensors it uses directly by path. Raises `ModelRefused`."""
    if isinstance(model, Traced):
        return model.graph_, dict(model.layers()), dict(model.tensors())
    root = _One(model)
    tracer = _Tracer()
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
                "Replace a loop over time by a layer that takes the whole sequence (T, B, C), or wrap the one-step network in spikedeploy.nn.OverTime.",
            )
        ) from error
    graph = Graph(tuple(_node(node) for node in traced.nodes))
    layers = {n.target: root.get_submodule(_inner(model, n.target)) for n in graph.nodes if n.op == "module"}
    tensors = {n.target: _tensor(root, n.target) for n in graph.nodes if n.op == "tensor"}
    return graph, layers, tensors


def _inner(model: nn.Module, path: str) -> str:
    return "model" if path == LONE else f"model.{path}"


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
            (parent._parameters if isinstance(value, nn.Parameter) else parent._buffers)[name] = value  # type: ignore[index]

    def _parent(self, path: str) -> tuple[nn.Module, str]:
        *outer, name = path.split(".")
        here: nn.Module = self
        for part in outer:
            here = here._modules.setdefault(part, nn.Module())  # type: ignore[assignment]
        return here, name

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The leaf layers by path."""
        for path in self.paths[0]:
            parent, name = self._parent(path)
            yield path, parent._modules[name]  # type: ignore[misc]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that the graph reads directly, by path."""
        for path in self.paths[1]:
            parent, name = self._parent(path)
            yield path, (parent._parameters | parent._buffers)[name]  # type: ignore[misc]

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
        values[node.name] = seen(node, _call(node, layers, tensors, x, args, kwargs))
    raise ModelRefused(message("model", "its graph has no output", "one is needed"))


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
