"""A NIR graph becomes a Program: nested graphs are opened, fan-in becomes sums, nodes are put in the order they run.

Wires: what a node puts out is the wire of that node's name; a spiking node's membrane is `<name>.mem`; the sum in front of a node is
`<name>.sum`. The renamings that an exporter notes in the metadata (`names`, JSON) are undone, so that wires can be compared by the names
of the source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import BadInput, ModelRefused, message
from spikedeploy.program import INPUT, Output, Program
from spikedeploy.readers.nir_file import Graph, Node
from spikedeploy.readers.nir_nodes import DIALECTS, NODES, SPOKEN, Discretisation, Site, tidy
from spikedeploy.shapes import ShapeError, shapes_of
from spikedeploy.steps import Shape, Step

DEFAULT_DT = 1e-4
"""What a file without metadata is read with unless told: snnTorch, spikingjelly and lava write with this one."""
Part = tuple[str, int, int, Shape]
CUTS = ("euler", "exact", "nengo", *DIALECTS)
_GATES = ("Input", "Output")
_RANK = {"Affine": 1, "Linear": 1, "Conv2d": 3, "SumPool2d": 3, "AvgPool2d": 3}


def program_of(graph: Graph, dt: float | None = None, discretisation: Discretisation | None = None) -> Program:
    """The program that the graph computes at time steps of `dt`. Raises `BadInput` naming the node that cannot be read."""
    notes = [f"made from program {made}"] if isinstance(made := graph.metadata.get("program"), str) else []
    dt, discretisation = _time(graph, dt, discretisation, notes)
    nodes, edges = _flat(graph)
    build = _Build(nodes, edges, dt, discretisation, notes, _names(graph, nodes), _parts(graph))
    for name in _order(nodes, edges):
        build.add(name)
    try:
        return build.program(graph)
    except ModelRefused as error:
        raise BadInput(f"NIR graph: {error}") from None


def _time(graph: Graph, dt: float | None, discretisation: Discretisation | None, notes: list[str]) -> tuple[float, Discretisation]:
    said, cut = graph.metadata.get("dt"), graph.metadata.get("discretisation")
    said = float(said.ravel()[0]) if isinstance(said, np.ndarray) and said.size == 1 and said.dtype.kind in "fiu" else None
    cut = cut if cut in CUTS else None
    used, how = dt or said or DEFAULT_DT, discretisation or cut or "euler"
    if not 0 < used < float("inf"):
        raise BadInput(message("NIR file", f"a time step dt of {used}", "it must be above zero"))
    source = "stated" if dt else "as the file says" if said else "assumed: the file does not say"
    notes.append(
        f"time step {used:g} ({source}), discretisation {how} ({'stated' if discretisation else 'as the file says' if cut else 'assumed'})"
    )
    if dt and said and dt != said:
        notes.append(f"the file says dt = {said:g}; {dt:g} was stated instead")
    return used, how


def _names(graph: Graph, nodes: Mapping[str, Node]) -> Mapping[str, str]:
    """Node name -> source wire, from our own metadata; a name that is not its own."""
    try:
        found = json.loads(graph.metadata.get("names", "{}"))
        ok = all(isinstance(a, str) and isinstance(b, str) and a in nodes for a, b in found.items())
    except (ValueError, TypeError, AttributeError):
        ok = False
    if not ok:
        raise BadInput(message("NIR file", "metadata 'names' is unreadable", "a JSON object from node to wire is needed"))
    return found


def _parts(graph: Graph) -> Mapping[str, list[Part]]:
    """Wire of a widened layer -> what its stretches are called, `(wire, start, stop)`, from our own metadata."""
    try:
        found = json.loads(graph.metadata.get("parts", "{}"))
        return {str(name): [(str(w), int(a), int(b), tuple(map(int, shape))) for w, a, b, shape in parts] for name, parts in found.items()}
    except (ValueError, TypeError, AttributeError):
        raise BadInput(message("NIR file", "metadata 'parts' is unreadable", "a JSON object of stretches is needed")) from None


# --- wiring ----------------------------------------------------------------------------------------------------


def _flat(graph: Graph, prefix: str = "") -> tuple[dict[str, Node], list[tuple[str, str]]]:
    """All nodes under dotted names, with nested graphs opened: their Input and Output stay as nodes that pass on what they get."""
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    gates: dict[str, dict[str, list[str]]] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, Graph):
            inner, wires = _flat(node, f"{prefix}{name}.")
            nodes |= inner
            edges += wires
            own = {k: n.kind for k, n in node.nodes.items() if isinstance(n, Node)}
            gates[name] = {gate: [f"{prefix}{name}.{k}" for k, kind in own.items() if kind == gate] for gate in _GATES}
        else:
            nodes[f"{prefix}{name}"] = node
    if len(set(graph.edges)) != len(graph.edges):
        raise BadInput(message("NIR graph", "an edge stands twice", "each edge once"))
    for source, target in graph.edges:
        for end in (source, target):
            if end not in graph.nodes:
                raise BadInput(message(f"edge '{source}' -> '{target}'", f"there is no node '{end}'", "both ends must exist"))
        edges.append((_gate(gates, prefix, source, "Output"), _gate(gates, prefix, target, "Input")))
    return nodes, edges


def _gate(gates: Mapping[str, Mapping[str, list[str]]], prefix: str, name: str, kind: str) -> str:
    if name not in gates:
        return f"{prefix}{name}"
    found = gates[name][kind]
    if len(found) != 1:
        raise BadInput(message(f"graph '{prefix}{name}'", f"{len(found)} nodes of kind {kind}", "a nested graph needs exactly one"))
    return found[0]


def _order(nodes: Mapping[str, Node], edges: list[tuple[str, str]]) -> list[str]:
    """Node names in an order in which everything is written before it is read; the alphabet decides between equals."""
    waiting: dict[str, set[str]] = {name: set() for name in sorted(nodes)}
    for source, target in edges:
        waiting[target].add(source)
    order: list[str] = []
    while waiting:
        ready = [name for name, sources in waiting.items() if not sources & waiting.keys()]
        if not ready:
            loop = ", ".join(f"'{name}'" for name in _loop(waiting)[:6])
            raise BadInput(
                message(
                    f"NIR graph: nodes {loop}",
                    "they feed themselves (a recurrent connection)",
                    "feed-forward graphs are read",
                    "State is kept inside neurons only.",
                )
            )
        order += ready
        for name in ready:
            del waiting[name]
    return order


def _loop(waiting: Mapping[str, set[str]]) -> list[str]:
    name, seen = next(iter(waiting)), []
    while name not in seen:
        seen.append(name)
        name = min(waiting[name] & waiting.keys())
    return seen[seen.index(name) :]


class _Build:
    """The steps written so far, and which wire and shape each node puts out."""

    def __init__(
        self,
        nodes: Mapping[str, Node],
        edges: list[tuple[str, str]],
        dt: float,
        discretisation: Discretisation,
        notes: list[str],
        names: Mapping[str, str],
        parts: Mapping[str, list[Part]],
    ) -> None:
        self.nodes, self.edges, self.dt, self.discretisation, self.notes = nodes, edges, dt, discretisation, notes
        self.steps: list[Step] = []
        self.wire: dict[str, str] = {}
        self.shapes: dict[str, Shape] = {}
        self.sources: dict[str, list[str]] = {name: [] for name in nodes}
        for source, target in sorted(edges):
            self.sources[target].append(source)
        self.inputs = [name for name, node in nodes.items() if node.kind == "Input" and not self.sources[name]]
        self.names, self.parts = names, parts
        self.taken = {self.name(node) for node in nodes}
        if len(self.inputs) != 1:
            raise BadInput(message("NIR graph", f"{len(self.inputs)} inputs {self.inputs}", "exactly one Input node is read"))

    def name(self, node: str) -> str:
        """The wire that the node writes; never the name of the program's input."""
        name = self.names.get(node, node)
        return f"{name}.node" if name == INPUT else name

    def add(self, name: str) -> None:
        node = self.nodes[name]
        if name in self.inputs:
            self.wire[name], self.shapes[INPUT] = INPUT, self.batch_dropped(name, _shape(name, node))
            return
        if not self.sources[name]:
            raise BadInput(message(f"node '{name}' ({node.kind})", "nothing flows into it", "every node but the Input needs an edge"))
        source = self.gather(name)
        if node.kind in _GATES:
            self.wire[name] = source
            return
        rule = NODES.get(node.kind)
        if rule is None or node.kind not in SPOKEN.get(self.discretisation, NODES):
            raise BadInput(message(f"node '{name}' ({node.kind})", "this kind is not read", f"{', '.join(sorted(NODES))} are"))
        site = Site(self.name(name), node, source, self.shapes[source], self.dt, self.discretisation, self.notes, self.taken)
        if node.kind == "Flatten":
            site.node = self.batchless(name, site)
        rule(site)
        self.extend(site.steps, site.where)
        self.cut(site)
        self.wire[name] = site.name if site.steps and site.name in site.steps[-1].outputs else source

    def cut(self, site: Site) -> None:
        """A widened layer shows the layers in it under their own names; what it only passes on has its name from where it arose."""
        for wire, start, stop, shape in self.parts.get(site.name, ()):
            for suffix in ("", ".mem"):
                source, name = f"{site.name}{suffix}", f"{wire}{suffix}"
                if source in self.shapes and name not in self.shapes:
                    cut = name if len(shape) == 1 else f"{name}.flat"
                    self.extend([S.Slice(cut, (source,), start, stop)], site.where)
                    if len(shape) != 1:
                        self.extend([S.Reshape(name, (cut,), shape)], site.where)

    def batch_dropped(self, name: str, shape: Shape) -> Shape:
        """Some writers keep a batch axis of one in front of the input; its readers tell."""
        ranks = {_RANK.get(self.nodes[b].kind) for a, b in self.edges if a == name}
        if len(shape) > 1 and shape[0] == 1 and ranks == {len(shape) - 1}:
            self.notes.append(f"node '{name}' (Input): the first axis of {shape} was read as a batch axis")
            return shape[1:]
        return shape

    def gather(self, name: str) -> str:
        """The wire into a node: where several edges meet, NIR adds."""
        wires = [self.wire[source] for source in self.sources[name]]
        if len(wires) == 1:
            return wires[0]
        if len({self.shapes[wire] for wire in wires}) != 1:
            raise BadInput(
                message(f"node '{name}'", f"inputs of shapes {[self.shapes[w] for w in wires]}", "where edges meet, shapes must be equal")
            )
        total = f"{self.name(name)}.sum"
        while total in self.taken:
            total += "_"
        self.extend([S.Add(total, tuple(wires))], f"node '{name}'")
        return total

    def extend(self, steps: list[Step], where: str) -> None:
        for step in steps:
            try:
                shapes = shapes_of(step, [self.shapes[wire] for wire in step.inputs])
            except ShapeError as error:
                raise BadInput(message(where, error.found, error.needed)) from None
            self.shapes |= dict(zip(step.outputs, shapes, strict=True))
            self.steps.append(step)

    def batchless(self, name: str, site: Site) -> Node:
        """A Flatten from axis 1 that only makes sense when axis 0 is the batch (so torch counts, and some writers) starts at axis 0."""
        widths = {
            self.nodes[b].params["weight"].shape[-1] for a, b in self.edges if a == name and self.nodes[b].kind in ("Affine", "Linear")
        }
        size = int(np.prod(site.shape, dtype=np.int64))
        if len(site.shape) > 1 and int(site.array("start_dim", 1.0)) == 1 and widths == {size}:
            self.notes.append(f"node '{name}' (Flatten): start_dim 1 was read as counting a batch axis")
            return Node("Flatten", {**site.node.params, "start_dim": np.array(0)})
        return site.node

    def program(self, graph: Graph) -> Program:
        ends = [name for name, node in self.nodes.items() if node.kind == "Output" and not any(a == name for a, _ in self.edges)]
        if not ends:
            raise BadInput(message("NIR graph", "it has no Output node", "at least one is needed"))
        outputs = _readout(graph.metadata, set(self.shapes)) or tuple(Output(name, self.wire[name]) for name in sorted(ends))
        origin = {step.name: self.nodes[step.name].kind for step in self.steps if step.name in self.nodes}
        if self.discretisation in DIALECTS:
            self.steps = lowered(self.steps)
        if not self.steps:
            self.steps.append(S.Scale("identity", (INPUT,), np.array(1.0)))
        return Program(self.shapes[INPUT], tuple(self.steps), outputs, origin=origin, notes=tuple(self.notes))


def lowered(steps: list[Step]) -> list[Step]:
    """`u + c > B` as `u > B - c`: the same decision, on the membrane that the model has."""
    writers = {step.name: step for step in steps}
    found: list[Step] = []
    for step in steps:
        before = writers.get(step.inputs[0])
        lift = _lift(before) if isinstance(step, S.Threshold) else None
        if isinstance(step, S.Threshold) and before is not None and lift is not None:
            step = replace(step, inputs=before.inputs, threshold=tidy(step.threshold - lift))
        found.append(step)
    read = {wire for step in found for wire in step.inputs}
    return [step for step in found if step.name in read or _lift(writers[step.name]) is None]


def _lift(step: Step | None) -> S.Array | None:
    """What the step adds, when that is all it does."""
    if isinstance(step, S.Scale) and np.all(step.scale == 1):
        return step.offset
    if isinstance(step, S.Affine) and np.array_equal(step.weight, np.eye(*step.weight.shape)):
        return step.bias
    return None


def _shape(name: str, node: Node) -> Shape:
    value = node.params.get("shape", node.params.get("input_type"))
    if (
        not isinstance(value, np.ndarray)
        or value.dtype.kind not in "iuf"
        or value.ndim != 1
        or np.any(value < 1)
        or np.any(value != np.floor(value))
    ):
        raise BadInput(message(f"node '{name}' (Input)", f"a shape of {value}", "whole numbers of at least 1 are needed"))
    return tuple(int(n) for n in value)


def _readout(metadata: Mapping[str, Any], wires: set[str]) -> tuple[Output, ...]:
    """The outputs as the exporter noted them (`readout`, JSON: name, wire, reduce over time)."""
    if "readout" not in metadata:
        return ()
    try:
        found = tuple(Output(str(item["name"]), str(item["wire"]), item["reduce"]) for item in json.loads(metadata["readout"]))
        ok = all(output.reduce in ("none", "mean", "sum", "last", "max") and output.wire in wires for output in found)
    except (ValueError, TypeError, KeyError):
        ok = False
    if not ok:
        raise BadInput(message("NIR file", "metadata 'readout' is unreadable", "a JSON list of name, wire and reduce is needed"))
    return found
