"""Running an ONNX step cell: the runner owns the states, so that a caller gives an input and gets an output.

    runner = OnnxRunner("model.onnx")
    for x in stream:            # (B, *input_shape)
        y = runner.step(x)      # (B, *output_shape)
    runner.reset()
    result = runner.run(xs)     # (T, B, *input_shape): outputs reduced over time where the model says so

Two bindings take turns: what one writes as present state the other reads as past state. No state is ever copied.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from spikedeploy.errors import BadInput, message
from spikedeploy.program import INPUT, Reduce
from spikedeploy.readers.onnx_guard import Source
from spikedeploy.readers.onnx_info import CellInfo, read_cell
from spikedeploy.runtime.onnx_probe import Probe
from spikedeploy.runtime.onnx_session import DTYPES, Binding, open_session, with_outputs
from spikedeploy.runtime.reference import REDUCE, Run, State, why_not_finite
from spikedeploy.steps import Array


class OnnxRunner:
    """A step cell with its states. Not for use from two threads at once.

    source   path or bytes of a cell that spikedeploy wrote; it is checked before any runtime sees it
    batch    samples that run side by side; 1, or the cell's own where that is fixed
    threads  of ONNX Runtime; 1 is fastest for all but very wide cells
    record   further wires of the program to give, by name: what `run` counts as spikes and what `wires` shows

    Raises `BadInput` for a file that is no such cell, and for a batch or a wire that it does not have.
    """

    def __init__(self, source: Source, *, batch: int | None = None, threads: int = 1, record: Collection[str] = ()) -> None:
        data, self.model, self.info = read_cell(source)
        if self.info.kind != "step":
            raise BadInput(
                message("ONNX model", "it runs whole sequences", "a step cell is needed", "Use spikedeploy.runtime.SequenceRunner.")
            )
        self.batch = _batch(self.info, batch)
        self._recorded = {wire: f"wire.{wire}" for wire in _known(self.info, record)}
        if self._recorded:
            model = with_outputs(self.model, {public: self.info.wires[wire].value for wire, public in self._recorded.items()})
            data = model.SerializeToString(deterministic=True)
        self._session = open_session(data, threads)
        self._allocate()

    def _allocate(self) -> None:
        """Buffers for the input, the outputs and, twice, the states; and the two bindings of them."""
        info = self.info
        kinds = {item.name: item.type for item in (*self._session.get_inputs(), *self._session.get_outputs())}
        shapes = {o.value: o.shape for o in info.outputs} | {public: info.wires[wire].shape for wire, public in self._recorded.items()}
        self._input = self._buffer(kinds[INPUT], info.input_shape)
        self._outputs = {name: self._buffer(kinds[name], shape) for name, shape in shapes.items()}
        self._first = self._outputs[info.outputs[0].value]
        self._states = [[self._buffer(kinds[name], s.shape) for s in info.states for name in (s.past,)] for _ in (0, 1)]
        self._bindings = (self._bind(0, 1), self._bind(1, 0))
        self._turn = 0

    def _buffer(self, kind: str, shape: tuple[int, ...]) -> Array:
        if kind not in DTYPES:
            raise BadInput(message("ONNX cell", f"a value of type {kind}", f"one of {', '.join(DTYPES)} is needed"))
        return np.zeros((self.batch, *shape), DTYPES[kind])

    def _bind(self, past: int, present: int) -> Binding:
        states = self.info.states
        inputs = {INPUT: self._input} | {s.past: array for s, array in zip(states, self._states[past], strict=True)}
        outputs = self._outputs | {s.present: array for s, array in zip(states, self._states[present], strict=True)}
        return Binding(self._session, inputs, outputs)

    def reset(self) -> None:
        """Every state back to zero."""
        for array in self._states[self._turn]:
            array[...] = 0

    def step(self, x: npt.ArrayLike) -> Array:
        """One time step: x `(B, *input_shape)` -> the first output `(B, *output_shape)`, an array of the caller's own.

        Raises `BadInput` for another shape. Values are not looked at, except that tokens must be rows of the table.
        """
        x = np.asarray(x)
        if x.shape != self._input.shape:
            raise BadInput(message("input", f"an array of shape {x.shape}", f"{self._input.shape} is needed"))
        if self.info.rows is not None:
            _check_tokens(x, self.info.rows)
        self._input[...] = x
        self._bindings[self._turn].run()
        self._turn ^= 1
        return self._first.copy()

    @property
    def outputs(self) -> dict[str, Array]:
        """All outputs of the last step, by the program's names, before any reduction over time."""
        return {o.name: self._outputs[o.value].copy() for o in self.info.outputs}

    @property
    def wires(self) -> dict[str, Array]:
        """The recorded wires at the last step, `(B, *shape)`."""
        return {wire: self._outputs[public].copy() for wire, public in self._recorded.items()}

    @property
    def spikes(self) -> dict[str, Array]:
        """Those of `wires` that are spikes, by layer."""
        return {s.layer: self._outputs[self._recorded[s.layer]].copy() for s in self.info.spikes if s.layer in self._recorded}

    @property
    def states(self) -> dict[str, State]:
        """The states as they are now, `{layer: {name: (B, *shape)}}`; may be set, to go on from where another run stopped."""
        found: dict[str, State] = {}
        for info, array in zip(self.info.states, self._states[self._turn], strict=True):
            found.setdefault(info.layer, {})[info.name] = array.copy()
        return found

    @states.setter
    def states(self, states: Mapping[str, Mapping[str, npt.ArrayLike]]) -> None:
        for info, array in zip(self.info.states, self._states[self._turn], strict=True):
            given = np.asarray(states.get(info.layer, {}).get(info.name, 0))
            if given.ndim and given.shape != array.shape:
                raise BadInput(message(f"state '{info.layer}.{info.name}'", f"an array of shape {given.shape}", f"{array.shape} is needed"))
            array[...] = given

    def run(self, x: npt.ArrayLike, *, reset: bool = True) -> Run:
        """A whole sequence `(T, B, *input_shape)`, from zero states unless `reset` is False; gives what the reference runtime gives.

        A run from zero states takes the batch of `x`, unless the cell was built for a fixed one.
        Spikes are counted for recorded layers. Raises `BadInput` for another shape and for values that are not finite.
        """
        xs = check_sequence(self.info, x, self.info.batch if reset else self.batch)
        if reset and xs.shape[1] != self.batch:
            self.batch = xs.shape[1]
            self._allocate()
        elif reset:
            self.reset()
        series = {name: np.empty((len(xs), *array.shape), array.dtype) for name, array in self._outputs.items()}
        for t in range(len(xs)):
            self._input[...] = xs[t]
            self._bindings[self._turn].run()
            self._turn ^= 1
            for name, array in self._outputs.items():
                series[name][t] = array
        wires = {wire: series[public] for wire, public in self._recorded.items()}
        layers = [s.layer for s in self.info.spikes if s.layer in wires]
        return Run(
            outputs={o.name: reduced(o.reduce, series[o.value]) for o in self.info.outputs},
            wires=wires,
            states=self.states,
            spikes={layer: int(np.count_nonzero(wires[layer])) for layer in layers},
            decisions={layer: wires[layer].size for layer in layers},
        )

    def run_forced(self, x: npt.ArrayLike, forced: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        """The sequence from zero states, with the readers of each spiking layer in `forced` seeing the given `(T, B, *shape)` instead.

        Returns, per wire, what the cell itself computed: all spiking layers, their membranes, the outputs' wires, and `{layer}.decision`,
        the very values that were compared with the threshold.
        """
        xs = check_sequence(self.info, x, self.info.batch)
        probe = Probe(self.model, self.info, tuple(sorted(forced)))
        return probe.run(xs, {layer: np.asarray(value) for layer, value in forced.items()})


def reduced(kind: Reduce, series: Array) -> Array:
    """A reduction over time that adds step after step; NumPy would add a series of single numbers, one long vector, in another order."""
    if series[0].size > 1:
        return REDUCE[kind](series)
    twin: Array = REDUCE[kind](np.stack([series, series], axis=-1))
    return twin[..., 0]


def check_sequence(info: CellInfo, x: npt.ArrayLike, batch: int | None = None) -> Array:
    """`x` as an array `(T, B, *input_shape)`. Raises `BadInput` with the expected shape and what was given."""
    array = np.asarray(x)
    needed = f"({', '.join(map(str, ('T', batch or 'B', *info.input_shape)))}) is needed, T and B at least 1"
    fits = array.ndim == 2 + len(info.input_shape) and array.shape[2:] == info.input_shape and 0 not in array.shape
    if not fits or (batch is not None and array.shape[1] != batch):
        raise BadInput(message("input", f"an array of shape {array.shape}", needed))
    if array.dtype.kind not in "fiub":
        raise BadInput(message("input", f"an array of {array.dtype}", "real numbers are needed"))
    if info.rows is not None:
        _check_tokens(array, info.rows)
    elif found := why_not_finite(array, np.float32):
        raise BadInput(message("input", found, "finite numbers are needed"))
    return array


def _check_tokens(x: Array, rows: int) -> None:
    if np.any(x != np.floor(x)) or x.min() < 0 or x.max() >= rows:
        raise BadInput(message("input", f"values from {x.min()} to {x.max()}", f"whole numbers from 0 to {rows - 1} are needed"))


def _batch(info: CellInfo, batch: int | None) -> int:
    if batch is not None and batch < 1:
        raise BadInput(message("batch", f"{batch}", "at least 1 is needed"))
    if info.batch is not None and batch not in (None, info.batch):
        raise BadInput(message("batch", f"{batch}", f"this cell was built for a batch of {info.batch}"))
    return batch or info.batch or 1


def _known(info: CellInfo, record: Collection[str]) -> list[str]:
    for wire in record:
        if wire not in info.wires:
            raise BadInput(message("ONNX cell", f"no wire '{wire}'", f"one of {', '.join(info.wires)} is needed"))
    return list(dict.fromkeys(record))
