"""A loop over time in a user's forward, rolled up again: the trace holds every step one after another, the graph holds one step.

    mem = lif.init_leaky()
    for t in range(steps):                      one step graph: the body,
        spk, mem = lif(fc(x[t]), mem)     ->    over_time(x): the body at every step, the neurons' membranes from zero,
        out.append(spk)                         the results stacked
    return torch.stack(out)

All steps must do the same, and nothing may pass from step to step but the membrane of a neuron and a running sum.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import snntorch
from torch import Tensor, fx, nn

from spikedeploy.errors import ModelRefused, message
from spikedeploy.graph import Graph, Node, Ref, map_refs, refs

BATCH = "batch_size"
"""The name of the node that stands for the number of samples, where a forward asked for it as a number."""
Row = tuple[str, str, Any, Any]
LOOP = "loop"
"""The name of the rolled loop in the graph."""


def refuse(found: str, do: str = "") -> ModelRefused:
    """The error for a loop that cannot be rolled."""
    return ModelRefused(
        message(
            "loop over time in the model's forward",
            found,
            "a loop that does the same at every step x[t] and hands on nothing but membranes and running sums is needed",
            do or "Wrap the one-step network in spikedeploy.nn.OverTime, or use spikedeploy.nn.Leaky on the whole sequence.",
        )
    )


class Size(int):
    """The length of an axis of the input where the forward asks for a number; arithmetic with it would be frozen into the graph."""

    axis: int

    def __new__(cls, value: int, axis: int) -> Size:
        self = super().__new__(cls, value)
        self.axis = axis
        return self

    def _refuse(self, *_: Any) -> Any:
        raise refuse(f"it computes with the number of {('steps', 'samples')[self.axis]}", "Use mean(0) on the stacked results instead.")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _refuse


class Sized(fx.Proxy):
    """The model's input in a trace that knows its sizes, so that a loop over time unrolls."""

    sizes: tuple[int, ...] = ()

    def with_sizes(self, sizes: Sequence[int]) -> Sized:
        """Set the sizes; time and batch remember which they are."""
        self.__dict__["sizes"] = (Size(sizes[0], 0), Size(sizes[1], 1), *(int(n) for n in sizes[2:]))
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes as numbers."""
        return self.sizes

    def size(self, dim: int | None = None) -> Any:
        """One size, or all."""
        return self.sizes if dim is None else self.sizes[dim]

    def dim(self) -> int:
        """How many axes there are."""
        return len(self.sizes)

    def unbind(self, dim: int = 0) -> Iterator[fx.Proxy]:
        """Every time step, taken when its turn comes: the trace then shows where a step begins."""
        if dim != 0:
            raise refuse(f"it unbinds axis {dim}")
        return (operator.getitem(self, t) for t in range(int(self.sizes[0])))

    def __iter__(self) -> Any:
        return self.unbind()


def with_batch_size(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The nodes with one that measures the batch, where any of them asks for it."""
    if not any(ref.node == BATCH for node in nodes for ref in refs((node.args, node.kwargs))):
        return nodes
    at = next(i for i, node in enumerate(nodes) if node.op == "input")
    return (*nodes[: at + 1], Node(BATCH, "method", "size", (Ref(nodes[at].name), 1)), *nodes[at + 1 :])


def is_unrolled(graph: Graph, layers: Mapping[str, nn.Module]) -> bool:
    """Whether the graph holds a loop over time: single steps of the input, or a one-step neuron that runs again or takes a membrane."""
    inputs = [node.name for node in graph.nodes if node.op == "input"]
    taken = {found for node in graph.nodes if (found := _time_index(node))}
    if any({(name, 0), (name, 1)} <= taken for name in inputs):
        return True
    calls = [node for node in graph.nodes if node.op == "module" and type(layers[node.target]) is snntorch.Leaky]
    return len({node.target for node in calls}) < len(calls) or any(len(node.args) > 1 or node.kwargs for node in calls)


@dataclass(frozen=True, slots=True)
class _Slot:
    """A reference as all steps have it: `here` (same step), `before` (previous step) or `outside` the loop."""

    kind: str
    key: Any


def _time_index(node: Node) -> tuple[str, int] | None:
    """(base, t) where the node is `base[t]`."""
    if node.op != "function" or node.target != "operator.getitem" or not isinstance(node.args[0], Ref):
        return None
    index = node.args[1]
    if isinstance(index, tuple) and index and all(item == slice(None) or item is Ellipsis for item in index[1:]):
        index = index[0]
    return (node.args[0].node, index) if isinstance(index, int) and not isinstance(index, bool) else None


@dataclass(slots=True)
class _Roll:
    """The unrolled graph cut into steps; `body` is the second one, with slots for references."""

    graph: Graph
    layers: Mapping[str, nn.Module]
    tensors: Mapping[str, Tensor]
    base: str
    outside: list[Node]
    steps: list[list[Node]]
    after: list[Node]

    def slotted(self, t: int) -> list[Row]:
        """Step t with references as slots."""
        here = {node.name: i for i, node in enumerate(self.steps[t])}
        before = {node.name: i for i, node in enumerate(self.steps[t - 1])} if t else {}

        def slot(ref: Ref) -> _Slot:
            if ref.node in here:
                return _Slot("here", here[ref.node])
            return _Slot("before", before[ref.node]) if ref.node in before else _Slot("outside", ref.node)

        rows = [(n.op, n.target, map_refs(n.args, slot), map_refs(n.kwargs, slot)) for n in self.steps[t]]
        return [("function", "operator.getitem", (_Slot("outside", self.base),), {}), *rows[1:]]


def roll(graph: Graph, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> Graph:
    """The graph with its loop over time as one `over_time` node. Raises `ModelRefused` where the steps are not alike."""
    cut = _cut(graph, layers, tensors)
    body = cut.slotted(1)
    for t in range(2, len(cut.steps)):
        if cut.slotted(t) != body:
            raise refuse(f"step {t} does something else than step 1")
    carried = _carried(cut, body)
    results = _Results({i: other for i, other in carried.items() if other >= 0})
    after = [_after(cut, node, results) for node in cut.after]
    inner = _body(cut, body, carried, results.wanted)
    needed = {ref.node for node in (*cut.outside, *after) for ref in refs((node.args, node.kwargs))} | {cut.base}
    outside = [node for node in cut.outside if node.op != "tensor" or node.name in needed]
    loop = Node(LOOP, "over_time", LOOP, (Ref(cut.base),))
    return Graph((*outside, loop, *results.nodes.values(), *after), {**graph.steps, LOOP: inner})


def _cut(graph: Graph, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> _Roll:
    free = [node for node in graph.nodes if node.op in ("input", "tensor") or node.name == BATCH]
    nodes = [node for node in graph.nodes if node not in free]
    first = next((found for node in nodes if (found := _time_index(node)) and found[1] == 0 and _is_wire(graph, found[0])), None)
    if first is None:
        raise refuse("it never takes x[0], the first time step")
    base = first[0]
    taken = {i: found[1] for i, node in enumerate(nodes) if (found := _time_index(node)) and found[0] == base}
    starts, times = list(taken), list(taken.values())
    if times != list(range(len(times))) or len(times) < 2:
        raise refuse(f"it takes the time steps {times[:8]} in this order", "Take every step once, first to last, at least two of them.")
    length = starts[1] - starts[0]
    steps = [nodes[i : i + length] for i in starts]
    if any(b - a != length for a, b in itertools.pairwise(starts)):
        raise refuse("its steps are not of the same length")
    return _Roll(graph, layers, tensors, base, free + nodes[: starts[0]], steps, nodes[starts[-1] + length :])


def _is_wire(graph: Graph, name: str) -> bool:
    """Whether `name` can be a tensor over time: the input or a result of one layer or operation on it, not a tuple of a neuron."""
    node = next(node for node in graph.nodes if node.name == name)
    return node.op == "input" or any(_time_index(user) == (name, 2) for user in graph.users(name)) or len(graph.users(name)) == 1


def _carried(cut: _Roll, body: list[Row]) -> dict[int, int]:
    """What passes from step to step: position -> -1 for a neuron given its membrane, or for a running sum the position it adds."""
    first, found = cut.slotted(0), {}
    for i, (op, target, args, kwargs) in enumerate(body):
        slots = _slots((args, kwargs))
        carries = [slot.key for slot in slots if slot.kind == "before"]
        if not carries:
            if (op, target, args, kwargs) != first[i]:
                raise refuse("step 0 does something else than step 1")
            continue
        layer = cut.layers.get(target) if op == "module" else None
        if type(layer) is snntorch.Leaky and carries == [_membrane_of(body, i)]:
            given = first[i][2][1:] or tuple(first[i][3].values())
            if not all(_is_zero(cut, value) for value in given):
                raise refuse(f"the membrane of '{target}' does not start at zero")
            found[i] = -1
        elif target in ("operator.add", "torch.add", "operator.iadd") and carries == [i]:
            found[i] = _added(cut, i, args, first[i][2])
        else:
            raise _reads_back(target, layer)
    return found


def _reads_back(target: str, layer: nn.Module | None) -> ModelRefused:
    if isinstance(layer, snntorch.SpikingNeuron) and type(layer) is not snntorch.Leaky:
        found = f"layer '{target}' is a {type(layer).__name__}"
        return refuse(found, "Use snntorch.Leaky, the one-step neuron that is supported in a loop, or StateLeaky on the whole sequence.")
    return refuse(f"'{target}' reads a value of the step before")


def _slots(value: Any) -> list[_Slot]:
    if isinstance(value, _Slot):
        return [value]
    if isinstance(value, (tuple, list)):
        return [slot for item in value for slot in _slots(item)]
    return [slot for item in value.values() for slot in _slots(item)] if isinstance(value, Mapping) else []


def _membrane_of(body: list[Row], call: int) -> int:
    """Where the body takes the second result of the neuron called at `call`."""
    wanted = (_Slot("here", call), 1)
    return next((i for i, (_, target, args, _) in enumerate(body) if target == "operator.getitem" and args == wanted), -1)


def _is_zero(cut: _Roll, value: Any) -> bool:
    if isinstance(value, _Slot) and value.kind == "outside":
        node = next(node for node in cut.outside if node.name == value.key)
        return node.op == "tensor" and not bool(cut.tensors[node.target].any())
    return value is None or (isinstance(value, (int, float)) and value == 0)


def _added(cut: _Roll, i: int, args: tuple[Any, ...], first: tuple[Any, ...]) -> int:
    """The position that a running sum at `i` adds."""
    for mine, other in ((0, 1), (1, 0)):
        if args[mine] == _Slot("before", i) and isinstance(args[other], _Slot) and args[other].kind == "here":
            if not _is_zero(cut, first[mine]) or first[other] != args[other]:
                raise refuse("a running sum does not start at zero")
            return int(args[other].key)
    raise refuse("a running sum adds something that is not of the same step")


@dataclass(slots=True)
class _Results:
    """What the rest of the forward takes from the loop. sums: running sums and the position that each adds; wanted: positions, in order."""

    sums: Mapping[int, int]
    wanted: list[int] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)

    def stacked(self, position: int) -> Ref:
        """The value of a position at every step."""
        if position not in self.wanted:
            self._add(f"{LOOP}_{position}", "operator.getitem", (Ref(LOOP), len(self.wanted)))
            self.wanted.append(position)
        return Ref(f"{LOOP}_{position}")

    def last(self, position: int) -> Ref:
        """The value of a position after the last step: of a running sum, the sum of all steps."""
        if position in self.sums:
            return self._add(f"{LOOP}_{position}_sum", "accumulate", (self.stacked(self.sums[position]),))
        return self._add(f"{LOOP}_{position}_last", "operator.getitem", (self.stacked(position), -1))

    def _add(self, name: str, function: str, args: tuple[Any, ...]) -> Ref:
        self.nodes.setdefault(name, Node(name, "function", function, args))
        return Ref(name)


def _after(cut: _Roll, node: Node, results: _Results) -> Node:
    """A node after the loop: stacks of all steps become the loop's results, sums and last values are taken from them."""
    where = {n.name: (t, i) for t, step in enumerate(cut.steps) for i, n in enumerate(step)}
    stacked = _stacked(node, where, len(cut.steps))
    if stacked is not None:
        return replace(node, target="torch.movedim", args=(results.stacked(stacked[0]), 0, stacked[1]), kwargs={})

    def change(ref: Ref) -> Any:
        step, position = where.get(ref.node, (-1, -1))
        if step not in (-1, len(cut.steps) - 1):
            raise refuse("after the loop it reads single steps", "Collect the results of every step in a list and torch.stack it.")
        return ref if step < 0 else results.last(position)

    return replace(node, args=map_refs(node.args, change), kwargs=map_refs(node.kwargs, change))


def _stacked(node: Node, where: Mapping[str, tuple[int, int]], steps: int) -> tuple[int, int] | None:
    """(position, dim) where the node stacks one value of all steps."""
    if node.target != "torch.stack":
        return None
    listed = [where.get(item.node, (-1, -1)) if isinstance(item, Ref) else (-1, -1) for item in node.args[0]]
    if [t for t, _ in listed] != list(range(steps)) or len({i for _, i in listed}) != 1:
        return None
    return listed[0][1], int(node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0))


def _body(cut: _Roll, body: Sequence[Row], carried: Mapping[int, int], wanted: Sequence[int]) -> Graph:
    """One step as a graph of its own: neurons keep their membranes themselves, running sums are left to the outside."""
    names = [node.name for node in cut.steps[0]]
    used = {slot.key for i, row in enumerate(body) if i not in carried for slot in _slots(row[2:]) if slot.kind == "outside"}
    given = [node for node in cut.outside if node.op == "tensor" and node.name in used]
    if BATCH in used:
        given.append(Node(BATCH, "method", "size", (Ref(names[0]), 0)))
    if strangers := used - {node.name for node in given} - {cut.base}:
        raise refuse(f"a step reads '{strangers.pop()}', which was computed before the loop")

    def back(value: Any) -> Any:
        if isinstance(value, _Slot):
            return Ref(names[value.key] if value.kind == "here" else value.key)
        if isinstance(value, (tuple, list)):
            return type(value)(back(item) for item in value)
        return {key: back(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    nodes = [Node(names[0], "input", "x")]
    for i, (op, target, args, kwargs) in enumerate(body[1:], 1):
        if carried.get(i) == -1:
            nodes.append(Node(names[i], op, target, (back(args[0]),)))
        elif i not in carried:
            nodes.append(Node(names[i], op, target, back(args), back(kwargs)))
    outputs = tuple(Ref(names[position]) for position in wanted)
    return Graph((nodes[0], *given, *nodes[1:], Node("output", "output", "output", (outputs,))))
