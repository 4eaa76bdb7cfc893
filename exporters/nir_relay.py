"""Programs without fan-in: for readers that keep one of two edges where NIR adds them.

The layers are put in line by depth. A spike that is needed further down than the next layer is carried by relay neurons (decay 0,
threshold 1/2, weight 1), which fire exactly when it does: the layer in between becomes wider, and every sum becomes the one matrix
product in front of a layer. What is linear between two layers (convolutions, pools, sums, scales) is composed into that matrix.

    layer k:   x_k = sum_j W_kj s_j + b_k           j any earlier layer
    in line:   [x_k; s_j ...] = W' [s_{k-1}; relays] + b'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from spikedeploy import steps as S
from spikedeploy.errors import ModelRefused, message
from spikedeploy.program import INPUT, Output, Program
from spikedeploy.runtime.reference import STEP, cast
from spikedeploy.steps import Array, Step

MAX_CELLS = 1 << 24
"""Weights of one composed matrix: a residual around a large convolution is refused rather than blown up."""
Part = tuple[str, int, int, tuple[int, ...]]
"""A stretch of a widened layer: the wire it holds, where it starts and stops, and that wire's shape."""
Parts = Mapping[str, tuple[Part, ...]]
_LINEAR = (S.Affine, S.Conv2d, S.SumPool2d, S.Scale, S.Reshape, S.Slice, S.Add)


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """A wire as `sum_j weights[j] source_j + bias`; weights `(size, source size)`, everything flat."""

    weights: Mapping[str, Array]
    bias: Array


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer of neurons: its spike wire, its depth, what flows in, and per-neuron decay and threshold."""

    step: S.Firing
    depth: int
    current: Sum
    decay: Array
    threshold: Array
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.current.bias)


def branches(program: Program) -> bool:
    """True when values meet: the program has a sum of several wires."""
    return any(isinstance(step, S.Add) and len(step.inputs) > 1 for step in program.steps)


def in_line(program: Program) -> tuple[Program, Parts]:
    """The same spikes without any fan-in, and which stretch of which new wire holds which old one.

    Raises `ModelRefused` where relays cannot carry what is skipped: values that are not spikes, delays, very large layers.
    """
    layers, wires = _read(program)
    last = _output(program)
    return _line(program, list(layers.values()), wires[last], last)


# --- reading -----------------------------------------------------------------------------------------------------


def _read(program: Program) -> tuple[dict[str, Layer], dict[str, Sum]]:
    size = prod(program.input_shape)
    _fits(program, "input", size * size)
    wires = {INPUT: Sum({INPUT: np.eye(size)}, np.zeros(size))}
    layers: dict[str, Layer] = {}
    membranes: dict[str, S.Integrator] = {}
    for index, step in enumerate(program.steps):
        where = program.where(index)
        if isinstance(step, S.Integrator):
            membranes[step.name] = step
        elif isinstance(step, S.Firing):
            layers[step.name] = _layer(program, where, step, membranes, wires, layers)
            wires[step.name] = _spikes(step, layers[step.name].size, program)
        elif isinstance(step, _LINEAR) and not any(wire in membranes for wire in step.inputs):
            wires[step.name] = _apply(program, where, step, [wires[name] for name in step.inputs])
        else:
            kind = type(step).__name__
            raise ModelRefused(message(where, f"{kind} beside a skip connection", "relay neurons carry spikes only", _OTHER))
    return layers, wires


_OTHER = "Use --profile spec or snntorch, whose readers add."


def _layer(
    program: Program,
    where: str,
    step: S.Firing,
    membranes: Mapping[str, S.Integrator],
    wires: Mapping[str, Sum],
    layers: Mapping[str, Layer],
) -> Layer:
    before = membranes.get(step.inputs[0])
    decay = step.decay if isinstance(step, S.LIF) else before.decay if before else np.array(0.0)
    current = wires[before.inputs[0] if before else step.inputs[0]]
    depth = 1 + max((layers[name].depth for name in current.weights if name != INPUT), default=0)
    if INPUT in current.weights and depth > 1:
        raise ModelRefused(message(where, "the input reaches it past a layer of neurons", "relay neurons carry spikes only", _OTHER))
    shape = program.wires[step.name]
    return Layer(step, depth, current, _flat(decay, shape), _flat(step.threshold, shape), shape)


def _flat(value: Array, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(np.asarray(value, np.float64), shape).reshape(-1)


def _spikes(step: S.Firing, size: int, program: Program) -> Sum:
    return Sum({step.name: np.diag(_flat(step.amplitude, program.wires[step.name]))}, np.zeros(size))


def _apply(program: Program, where: str, step: Step, inputs: list[Sum]) -> Sum:
    """The linear step on every column of every matrix at once, by the reference runtime's own function."""
    step = cast(step, np.float64)
    if isinstance(step, S.Add):
        return _add(program, where, step, inputs)
    shape, size = program.wires[step.inputs[0]], prod(program.wires[step.name])
    bare: Step = step
    if isinstance(step, S.Affine | S.Conv2d):
        bare = replace(step, bias=None)
    elif isinstance(step, S.Scale):
        bare = replace(step, offset=None)
    weights = {}
    for source, matrix in inputs[0].weights.items():
        _fits(program, where, size * matrix.shape[1])
        weights[source] = STEP[type(bare)](bare, matrix.T.reshape(-1, *shape), {}).reshape(matrix.shape[1], size).T
    bias = STEP[type(step)](step, inputs[0].bias.reshape(1, *shape), {}).reshape(size)
    return Sum(weights, bias)


def _add(program: Program, where: str, step: S.Add, inputs: list[Sum]) -> Sum:
    if len({program.wires[name] for name in step.inputs}) != 1:
        raise ModelRefused(message(where, "it adds different shapes", "equal shapes", "Use --target onnx."))
    weights: dict[str, Array] = {}
    for item in inputs:
        for source, matrix in item.weights.items():
            weights[source] = weights[source] + matrix if source in weights else matrix
    return Sum(weights, np.sum([item.bias for item in inputs], axis=0))


def _fits(program: Program, where: str, cells: int) -> None:
    if cells > MAX_CELLS:
        raise ModelRefused(message(where, f"a skip connection that needs a matrix of {cells} weights", f"at most {MAX_CELLS}", _OTHER))


def _output(program: Program) -> str:
    wires = [output.wire for output in program.outputs if not _membrane(program, output)]
    if len(set(wires)) != 1:
        names = ", ".join(f"'{output.name}'" for output in program.outputs)
        said = f"its results ({names}) are {len(set(wires))} different spike wires beside membranes"
        raise ModelRefused(message("model", said, "one result of spikes, for readers with one output and no adding", "Use --profile spec."))
    return wires[0]


def _membrane(program: Program, output: Output) -> bool:
    step = program.writer(output.wire)
    return isinstance(step, S.Integrator) or (isinstance(step, S.LIF) and output.wire != step.name)


# --- writing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What one widened layer holds: its own layers, then the earlier ones that it passes on."""

    name: str
    own: tuple[Layer, ...]
    relayed: tuple[Layer, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        layers = (*self.own, *self.relayed)
        ends = [0, *np.cumsum([layer.size for layer in layers]).tolist()]
        return tuple((layer.step.name, a, b, layer.shape) for layer, a, b in zip(layers, ends, ends[1:], strict=False))

    @property
    def size(self) -> int:
        return self.parts[-1][2]


def _line(program: Program, layers: list[Layer], result: Sum, last: str) -> tuple[Program, Parts]:
    depth = max(layer.depth for layer in layers)
    wanted = {name: max(_reach(name, layers), depth + 1 if name in result.weights else 0) for name in (x.step.name for x in layers)}
    steps: list[Step] = []
    source, held = _entry(program, steps), {INPUT: (0, prod(program.input_shape))}
    parts: dict[str, tuple[Part, ...]] = {}
    for k in range(1, depth + 1):
        own = tuple(layer for layer in layers if layer.depth == k)
        relayed = tuple(layer for layer in layers if layer.depth < k < wanted[layer.step.name])
        alone = len(own) == 1 and not relayed and len(own[0].shape) == 1
        stage = Stage(own[0].step.name if alone else f"{own[0].step.name}.wide", own, relayed)
        steps += _stage(stage, source, held)
        source, held = stage.name, {name: (a, b) for name, a, b, _ in stage.parts}
        if not alone:
            parts[stage.name] = stage.parts
    wire = _exit(program, steps, source, held, result, last)
    outputs = tuple(output if _membrane(program, output) else replace(output, wire=wire) for output in program.outputs)
    written = {name for step in steps for name in step.outputs}
    kept = tuple(output for output in outputs if output.wire in written)
    notes = (*program.notes, f"skips carried by relay neurons in {len(parts)} widened layers") if parts else program.notes
    return Program(program.input_shape, tuple(steps), kept, origin=program.origin, notes=notes), parts


def _reach(name: str, layers: Iterable[Layer]) -> int:
    return max((layer.depth for layer in layers if name in layer.current.weights), default=0)


def _entry(program: Program, steps: list[Step]) -> str:
    if len(program.input_shape) == 1:
        return INPUT
    steps.append(S.Reshape("flat", (INPUT,), (prod(program.input_shape),)))
    return "flat"


def _rows(current: Sum, held: Mapping[str, tuple[int, int]]) -> Array:
    """The matrix of a sum over what the stage before holds."""
    width = max(stop for _, stop in held.values())
    matrix = np.zeros((len(current.bias), width))
    for source, weights in current.weights.items():
        a, b = held[source]
        matrix[:, a:b] = weights
    return matrix


def _stage(stage: Stage, source: str, held: Mapping[str, tuple[int, int]]) -> list[Step]:
    kinds = {type(layer.step) for layer in stage.own}
    passed = [Sum({layer.step.name: np.eye(layer.size)}, np.zeros(layer.size)) for layer in stage.relayed]
    sums = [*(layer.current for layer in stage.own), *passed]
    zeros, halves = [np.zeros(x.size) for x in stage.relayed], [np.full(x.size, 0.5) for x in stage.relayed]
    decay, theta = np.concatenate([*(x.decay for x in stage.own), *zeros]), np.concatenate([*(x.threshold for x in stage.own), *halves])
    weight, bias = np.concatenate([_rows(x, held) for x in sums]), np.concatenate([x.bias for x in sums])
    affine = S.Affine(f"{stage.name}.map", (source,), weight, bias)
    if len(kinds) != 1:
        raise ModelRefused(message(f"layer '{stage.name}'", "neurons with and without reset side by side", "one kind", _OTHER))
    return [affine, *_NEURONS[kinds.pop()](stage, decay, theta)]


def _free(stage: Stage, decay: Array, theta: Array) -> list[Step]:
    if any(isinstance(layer.step, S.Threshold) and not layer.step.strict for layer in stage.own):
        raise ModelRefused(message(f"layer '{stage.name}'", "it fires at its threshold (>=)", "NIR's neurons fire above it (>)"))
    membrane = f"{stage.name}.mem"
    return [S.Integrator(membrane, (f"{stage.name}.map",), decay), S.Threshold(stage.name, (membrane,), theta)]


def _reset(stage: Stage, decay: Array, theta: Array) -> list[Step]:
    firsts = {(layer.step.reset, layer.step.strict) for layer in stage.own if isinstance(layer.step, S.LIF)}
    if firsts != {("zero", True)}:
        kinds = ", ".join(sorted(f"{reset} ({'>' if strict else '>='})" for reset, strict in firsts))
        raise ModelRefused(message(f"layer '{stage.name}'", f"resets: {kinds}", "a reset to zero (>)", "Use --target onnx."))
    return [S.LIF(stage.name, (f"{stage.name}.map",), decay, theta, "zero", reset_delay=False)]


_NEURONS: Mapping[type[Step], Callable[[Stage, Array, Array], list[Step]]] = {S.Threshold: _free, S.LIF: _reset}


def _exit(program: Program, steps: list[Step], source: str, held: Mapping[str, tuple[int, int]], result: Sum, last: str) -> str:
    """The wire that holds the result: the last layer itself, or one more matrix."""
    shape = program.wires[last]
    only = source in result.weights and len(held) == 1 and len(result.weights) == 1
    if only and len(shape) == 1 and np.array_equal(result.weights[source], np.eye(len(result.bias))) and not np.any(result.bias):
        return source
    if len(shape) != 1:
        raise ModelRefused(message(f"output '{last}'", f"its shape is {shape}", "a vector beside a skip connection", _OTHER))
    steps.append(S.Affine(f"{last}.out", (source,), _rows(result, held), result.bias))
    return f"{last}.out"
