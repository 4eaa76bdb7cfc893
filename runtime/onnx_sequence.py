"""Running the sequence model (`Scan`): a whole sequence in one call, for offline work."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from spikedeploy.errors import BadInput, message
from spikedeploy.program import INPUT
from spikedeploy.readers.onnx_guard import Source
from spikedeploy.readers.onnx_info import read_cell
from spikedeploy.runtime.onnx_runner import check_sequence
from spikedeploy.runtime.onnx_session import failed, open_session
from spikedeploy.runtime.reference import Run, State
from spikedeploy.steps import Array


class SequenceRunner:
    """A sequence model; `run` takes `(T, B, *input_shape)` and gives what `OnnxRunner.run` gives, to the same bits."""

    def __init__(self, source: Source, *, threads: int = 1) -> None:
        data, _, self.info = read_cell(source)
        if self.info.kind != "sequence":
            raise BadInput(message("ONNX model", "it is a step cell", "a sequence model is needed", "Use spikedeploy.runtime.OnnxRunner."))
        self._session = open_session(data, threads)
        self._names = [item.name for item in self._session.get_outputs()]

    def run(self, x: npt.ArrayLike, states: Mapping[str, Mapping[str, npt.ArrayLike]] | None = None) -> Run:
        """A whole sequence, from zero states or from given ones. Raises `BadInput` for another shape."""
        xs = check_sequence(self.info, x, self.info.batch)
        start = states or {}
        feeds: dict[str, Array] = {INPUT: np.ascontiguousarray(xs, np.int64 if self.info.input_kind == "index" else np.float32)}
        for s in self.info.states:
            shape = (xs.shape[1], *s.shape)
            feeds[s.past] = np.ascontiguousarray(np.broadcast_to(np.asarray(start.get(s.layer, {}).get(s.name, 0), np.float32), shape))
        try:
            found = dict(zip(self._names, self._session.run(self._names, feeds), strict=True))
        except Exception as error:  # the runtime's errors have no common base but Exception
            raise failed(error) from None
        last: dict[str, State] = {}
        for s in self.info.states:
            last.setdefault(s.layer, {})[s.name] = found[s.present]
        spikes = {s.layer: found[f"spikes.{s.layer}"] for s in self.info.spikes if s.exposed}
        return Run(
            outputs={o.name: found[o.value] for o in self.info.outputs},
            wires=spikes,
            states=last,
            spikes={layer: int(np.count_nonzero(value)) for layer, value in spikes.items()},
            decisions={layer: value.size for layer, value in spikes.items()},
        )
