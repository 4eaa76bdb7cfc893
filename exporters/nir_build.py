"""The graph under construction: nodes as plain parameters, edges, and for each wire of the program where it comes from.

A factor that lies on a wire (the amplitude of graded spikes, the 1/4 of a mean) travels with the wire until a weight can take it in: not
every reader has a Scale node. Only where no weight follows does it become a node of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from typing import Any

import numpy as np

from spikedeploy.errors import ModelRefused, message
from spikedeploy.exporters.nir_profiles import Profile
from spikedeploy.exporters.nir_relay import Parts
from spikedeploy.program import INPUT, Program
from spikedeploy.steps import Array, Shape, Step

RESERVED = frozenset(
    """
    T_destination add_module add_submodule apply bfloat16 buffers call_super_init children clear code compile cpu cuda
    delete_all_unused_submodules delete_submodule double dump_patches edges eval execution_order extra_repr float forward get_buffer
    get_execution_order get_extra_state get_input_nodes get_parameter get_submodule graph half input instantiate_modules ipu items
    keys load_state_dict meta metadata modules mtia named_buffers named_children named_modules named_parameters nodes output
    parameters pop print_readable recompile register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook register_load_state_dict_pre_hook
    register_module register_parameter register_state_dict_post_hook register_state_dict_pre_hook requires_grad_ return_state
    set_extra_state set_submodule shape_env share_memory state state_dict stateful_modules to to_empty to_folder train training type
    type_check update values xpu zero_grad
    """.split()  # noqa: SIM905
)
"""Names that torch modules, torch.fx and the NIR libraries use themselves: a node of that name breaks the reader."""


@dataclass(frozen=True, slots=True, eq=False)
class Wire:
    """Where a wire of the program comes from: the sum of the outputs of `nodes`, times `factor` (None: one)."""

    nodes: tuple[str, ...]
    shape: Shape
    factor: Array | None = None


@dataclass(slots=True)
class Builder:
    """Nodes, edges and wires so far."""

    program: Program
    profile: Profile
    dt: float
    discretisation: str
    nodes: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    wires: dict[str, Wire] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    rescaled: set[str] = field(default_factory=set)
    parts: Parts = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    where: str = ""

    def refuse(self, found: str, needed: str, do: str = "") -> ModelRefused:
        return ModelRefused(message(self.where, found, needed, do))

    def node_name(self, wire: str) -> str:
        """A name that every reader can bear; readers turn dots into underscores, so names must differ after that too."""
        base = "".join(c if (c.isalnum() and c.isascii()) or c in "._" else "_" for c in wire).strip(".") or "node"
        if base in RESERVED or iskeyword(base) or base.startswith("__"):
            base = f"{base}_node".lstrip("_")
        name, count = base, 1
        while name.replace(".", "_") in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name.replace(".", "_"))
        if name != wire:
            self.names[name] = wire
        return name

    def add(self, wire: str, kind: str, sources: Iterable[str], **params: Any) -> str:
        """A new node that writes the wire; returns its name."""
        if kind not in self.profile.nodes:
            raise self.refuse(f"it needs a {kind} node, which the reader of profile '{self.profile.name}' has not", "another form", _OTHER)
        name = self.node_name(wire)
        self.nodes[name] = (kind, params)
        self.edges += [(source, name) for source in sources]
        return name

    def put(self, step: Step, kind: str, source: Wire, factor: Array | None = None, **params: Any) -> None:
        """A node that writes the step's wire from `source`; `factor` stays on the new wire."""
        name = self.add(step.name, kind, source.nodes, **params)
        self.wires[step.name] = Wire((name,), self.program.wires[step.name], factor)

    def plain(self, name: str) -> Wire:
        """The wire with no factor on it: what a neuron or an output needs."""
        wire = self.wires[name]
        if wire.factor is not None:
            wire = self.wires[name] = self.scaled(name, wire, wire.factor, "graded")
        return wire

    def scaled(self, name: str, wire: Wire, factor: Array, suffix: str, divide: bool = False) -> Wire:
        """`factor * wire` (or wire / factor): inside the weights in front when nobody else reads them, else by a node of its own."""
        if len(wire.nodes) == 1 and self._alone(name, wire.nodes[0]) and self._fold_back(wire.nodes[0], factor, divide):
            return replace(wire, factor=None)
        full = np.broadcast_to(1 / np.asarray(factor, np.float64) if divide else np.asarray(factor, np.float64), wire.shape)
        wire_name = f"{name}.{suffix}"
        if len(wire.shape) == 1 and (self.profile.form == "cuba" or "Scale" not in self.profile.nodes):
            node = self.add(wire_name, "Affine", wire.nodes, weight=np.diag(full), bias=np.zeros(wire.shape))  # every reader has it
        elif "Scale" in self.profile.nodes:
            node = self.add(wire_name, "Scale", wire.nodes, scale=full.copy())
        else:
            raise self.refuse(f"a factor on a wire of shape {wire.shape} that no weight can take in", "a Scale node", _OTHER)
        return Wire((node,), wire.shape)

    def _alone(self, name: str, node: str) -> bool:
        """True when the node's values go to one reader only, directly or under the other names of the same values."""
        aliases = {wire for wire, at in self.wires.items() if node in at.nodes} | {name}
        readers = [reader for wire in aliases for reader in self.program.readers(wire) if reader.name not in aliases]
        return len(readers) == 1 and not any(output.wire in aliases for output in self.program.outputs)

    def _fold_back(self, node: str, factor: Array, divide: bool) -> bool:
        if node not in self.nodes:  # the input
            return False
        kind, params = self.nodes[node]
        if kind not in ("Affine", "Conv2d"):
            return False
        weight, bias = (np.asarray(params[key], np.float64) for key in ("weight", "bias"))
        out = per_channel(factor, (len(bias), *(1,) * (2 if kind == "Conv2d" else 0)))
        if out is None:
            return False
        column = out.reshape(-1, *(1,) * (weight.ndim - 1))
        out = out.reshape(-1)
        params["weight"], params["bias"] = (weight / column, bias / out) if divide else (weight * column, bias * out)
        return True

    def distinct(self, wires: list[Wire], name: str) -> tuple[str, ...]:
        """All nodes of the wires; an edge cannot stand twice, so a node that comes again goes through a copy."""
        found: list[str] = []
        for wire in wires:
            for node in wire.nodes:
                again = node in found
                found.append(self._copy(node, wire.shape, name) if again else node)
        return tuple(found)

    def _copy(self, node: str, shape: Shape, name: str) -> str:
        return self.scaled(f"{name}.{node}", Wire((node,), shape), np.ones(shape), "again").nodes[0]


_OTHER = "Use --profile generic or spec, or --target onnx."


def per_channel(value: Array, shape: Shape) -> Array | None:
    """`value` as one number per channel (the first axis) of `shape`, or None when it differs within a channel."""
    value = np.asarray(value, np.float64)
    try:
        return np.broadcast_to(value, shape).copy()
    except ValueError:
        pass
    if value.ndim == len(shape) and value.shape[0] in (1, shape[0]):
        first = value.reshape(value.shape[0], -1)[:, :1]
        if np.all(value.reshape(value.shape[0], -1) == first):
            return np.broadcast_to(first.reshape(-1, *(1,) * (len(shape) - 1)), shape).copy()
    return None


def start(program: Program, parts: Parts, profile: Profile, dt: float, discretisation: str) -> Builder:
    """A graph with its input and nothing else."""
    build = Builder(program, profile, dt, discretisation, parts=parts)
    build.nodes["input"] = ("Input", {"shape": np.array(program.input_shape)})
    build.taken |= {"input", "output"}
    build.wires[INPUT] = Wire(("input",), program.input_shape)
    return build
