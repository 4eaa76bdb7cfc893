"""From a trained torch model to its program: one probe run for the shapes, then one rule per call of the forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from spikedeploy.errors import BadInput, ModelRefused, message
from spikedeploy.graph import Graph, Node, map_refs
from spikedeploy.lower import lower_layer, lower_operation
from spikedeploy.lower.builder import Builder, Call, Reduced, Wire, constant, from_sizes, measured
from spikedeploy.probe import example_of, flatten, probe
from spikedeploy.program import INPUT, Output, Program
from spikedeploy.steps import Embedding
from spikedeploy.trace import trace

Semantics = Literal["recurrence", "snntorch-1.0.0"]
Results = Mapping[str, Any]
Values = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """A program together with the traced model it came from: `values` says which wire holds the value of which node."""

    program: Program
    graph: Graph
    layers: Mapping[str, nn.Module]
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def convert(
    model: nn.Module,
    example_input: Tensor | None = None,
    *,
    semantics: Semantics | None = None,
    truncation: Literal["exact", "drop"] = "exact",
) -> Program:
    """The iterative form of a trained model: one time step as a frozen list of steps.

    model          any traceable torch module of known layers; it is read in eval mode and not changed
    example_input  `(T, B, *shape)`: only its shape and dtype matter; a model from `spikedeploy.load` remembers its own
    semantics      of Gen2 layers: None takes what each class was trained with (`snntorch-1.0.0` for snnTorch's AssociativeLeaky,
                   `recurrence` for ours)
    truncation     of `kernel_truncation_steps`: "exact" keeps it by a delay line, "drop" leaves it out and notes the bound in
                   `program.notes`

    Raises `ModelRefused` naming the layer, what was found, what is needed and what to do; `BadInput` when the example does not fit the
    model.
    """
    return conversion(model, example_input, semantics=semantics, truncation=truncation).program


def conversion(
    model: nn.Module,
    example_input: Tensor | None = None,
    *,
    semantics: Semantics | None = None,
    truncation: Literal["exact", "drop"] = "exact",
) -> Conversion:
    """As `convert`, with what is needed to run the parallel model layer by layer beside the program."""
    if semantics not in (None, "recurrence", "snntorch-1.0.0") or truncation not in ("exact", "drop"):
        raise BadInput(
            message(
                "convert",
                f"semantics={semantics!r}, truncation={truncation!r}",
                "None, 'recurrence' or 'snntorch-1.0.0'; 'exact' or 'drop'",
            )
        )
    example = example_of(model, example_input)
    graph, layers, tensors = trace(model, example)
    run = probe(model, graph, layers, tensors, example)
    x, results = run.x, run.results
    builder = Builder({INPUT, *layers}, (int(x.shape[0]), int(x.shape[1])), not x.is_floating_point(), semantics, truncation)
    builder.shapes[INPUT] = tuple(int(n) for n in x.shape[2:])
    axes = ("T", "B", *("f",) * (x.ndim - 2))
    values = _lower(builder, graph, layers, tensors, Wire(INPUT, axes, tuple(int(n) for n in x.shape)), results)
    program = Program(
        input_shape=builder.shapes[INPUT],
        steps=tuple(builder.steps),
        outputs=tuple(_outputs(values["output"])),
        input_kind="index" if any(isinstance(step, Embedding) for step in builder.steps) else "float",
        origin=builder.origin,
        notes=tuple(builder.notes),
    )
    run.check(model)
    return Conversion(program, graph, layers, tensors, values)


def _lower(
    builder: Builder, graph: Graph, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], x: Wire, results: Results
) -> Values:
    values: Values = {}
    for node in graph.nodes:
        args = map_refs(node.args, lambda ref: values[ref.node])
        kwargs = map_refs(node.kwargs, lambda ref: values[ref.node])
        if node.op == "output":
            values["output"] = args[0]
        elif node.op == "input":
            values[node.name] = x
        elif node.op == "tensor":
            values[node.name] = tensors[node.target]
        elif node.op == "over_time":
            values[node.name] = _over_time(builder, graph, node, layers, tensors, args[0], results)
        else:
            call = _call(builder, node, layers, args, kwargs, results[node.name])
            _check_in_place(call, graph, node, layers)
            values[node.name] = _apply(call, node, layers)
    return values


def _over_time(
    builder: Builder, graph: Graph, node: Node, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], x: Any, results: Results
) -> Any:
    """The one-step graph of a loop is lowered as it is: its values have no time axis, which comes back around its results."""
    call = Call(builder, node.name, f"layer '{node.target}' (OverTime)", "OverTime", (x,), {}, None)
    x = call.wire()
    if x.axes[0] != "T":
        raise call.refuse(f"its input has axes {tuple(x.axes)}", "time first is needed")
    inside = {key.removeprefix(f"{node.name}/"): value for key, value in results.items() if key.startswith(f"{node.name}/")}
    values = _lower(builder, graph.steps[node.target], layers, tensors, Wire(x.name, x.axes[1:], x.sizes[1:]), inside)
    return _timed(values["output"], x.sizes[0])


def _timed(value: Any, steps: int) -> Any:
    """The result of one step as a result over time."""
    if isinstance(value, (tuple, list)):
        return tuple(_timed(item, steps) for item in value)
    return Wire(value.name, ("T", *value.axes), (steps, *value.sizes)) if isinstance(value, Wire) else value


def _call(builder: Builder, node: Node, layers: Mapping[str, nn.Module], args: Any, kwargs: Any, result: Any) -> Call:
    if node.op != "module":
        origin = node.target if node.op == "function" else f"method.{node.target}"
        name = builder.fresh(node.name)
        return Call(builder, name, f"operation '{node.name}' ({origin.split('.')[-1]})", origin, args, kwargs, result)
    kind, where = type(layers[node.target]).__name__, list(layers).index(node.target)
    name = builder.fresh(node.target) if node.target in builder.called else node.target
    builder.called.add(node.target)
    return Call(builder, name, f"layer {where} '{node.target}' ({kind})", kind, args, kwargs, result)


def _apply(call: Call, node: Node, layers: Mapping[str, nn.Module]) -> Any:
    if node.op == "module":
        return lower_layer(call, layers[node.target])
    if node.target == "getattr":
        return _attribute(call)
    if node.target == "operator.getitem" and isinstance(call.args[0], tuple):
        return call.args[0][call.args[1]]
    if not _depends(call.args) and not _depends(call.kwargs):  # arithmetic on sizes and constants
        return measured(call.result) if from_sizes(call.args) else call.result
    return lower_operation(call)


def _depends(value: Any) -> bool:
    """Whether a value was computed from the model's input."""
    if isinstance(value, (tuple, list)):
        return any(_depends(item) for item in value)
    if isinstance(value, Mapping):
        return any(_depends(item) for item in value.values())
    return isinstance(value, (Wire, Reduced))


def _attribute(call: Call) -> Any:
    value, name = call.args
    if isinstance(value, Mapping):
        return value[name]
    if name == "shape" and isinstance(value, (Wire, Reduced)):
        from spikedeploy.lower.wiring import size

        return size(call)
    if name in ("ndim", "dtype", "device"):
        return call.result
    raise call.refuse(f"it reads .{name}", "shape, or values of a maximum over time, can be read")


_ALIASES = frozenset(
    [
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
        "getitem",
        "contiguous",
        "to",
        "float",
        "detach",
        "select",
    ]
)


def _check_in_place(call: Call, graph: Graph, node: Node, layers: Mapping[str, nn.Module]) -> None:
    """An operation in place changes what other readers of its operand see: allowed only where there are none."""
    module = layers.get(node.target) if node.op == "module" else None
    in_place = node.target in ("operator.iadd", "operator.isub", "operator.imul", "operator.itruediv") or getattr(module, "inplace", False)
    if not in_place or isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)) or not _depends(call.args[:1]):
        return
    operand = next(n for n in graph.nodes if n.name == node.args[0].node)
    kind = type(layers[operand.target]).__name__ if operand.op == "module" else operand.target.split(".")[-1]
    fresh = operand.op != "input" and kind not in _ALIASES and kind not in ("Dropout", "Identity", "Flatten", "Unflatten")
    if not fresh or len(graph.users(operand.name)) > 1:
        raise call.refuse(
            "it changes a tensor in place that is also read elsewhere",
            "an operation with a result of its own is needed",
            "Write y = a + b, or inplace=False.",
        )


def _outputs(value: Any) -> list[Output]:
    """What the model returns, flat: one result is `output`, several are `output_0`, ..., a dict keeps its keys."""
    if isinstance(value, Mapping):
        named = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, (tuple, list)):
        flat = list(flatten(value))
        named = [(f"output_{i}", item) for i, item in enumerate(flat)] if len(flat) > 1 else [("output", item) for item in flat]
    else:
        named = [("output", value)]
    return [_output(name, item) for name, item in named]


def _output(name: str, value: Any) -> Output:
    where = f"output '{name}'"
    if isinstance(value, Mapping) or constant(value) or not isinstance(value, (Wire, Reduced)):
        raise ModelRefused(message(where, f"it is a {type(value).__name__}", "a tensor computed from the input is needed"))
    if isinstance(value, Reduced) and value.kept:
        raise ModelRefused(message(where, "its reduced time axis was kept", "a result without it is needed", "Reduce with keepdim=False."))
    wire, reduce = (value.wire, value.reduce) if isinstance(value, Reduced) else (value, "none")
    leads = ("B",) if isinstance(value, Reduced) else ("T", "B")
    if wire.axes != (*leads, *("f",) * len(wire.shape)):
        raise ModelRefused(
            message(
                where,
                f"its axes are {tuple(wire.axes)}",
                f"({', '.join(leads)}, features) are needed",
                "Part time and batch again before returning.",
            )
        )
    return Output(name, wire.name, reduce)
