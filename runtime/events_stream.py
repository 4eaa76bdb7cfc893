"""Single steps of the compiled engine at the price of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spikedeploy.program import Program
from spikedeploy.runtime.reference import Real


class Stream:
    """Steps without copies or checks: write `input`, call `step`, read `outputs`; the state is the engine's.

    input    `(B, *input_shape)` float32, yours to fill with finite numbers
    outputs  per output name its wire at this step, `(B, *shape)`, overwritten by the next step

    Nothing is locked either: one stream is for one thread, and while it is used the engine is for no other.
    """

    def __init__(self, tape: Any, program: Program, batch: int) -> None:
        shape = (batch, *program.input_shape)
        self.tape, self.input, self.next = tape, np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.valid: Callable[[], int] = tape.finite(self.next)
        tape.feed(self.input[None])
        self.outputs, copied = {}, {}
        for output in program.outputs:
            view = tape.view(output.wire, 1)[0]
            self.outputs[output.name] = view
            if not np.shares_memory(view, tape.of(output.wire).dense):
                copied[output.wire] = view
        single = tape.single()
        self.step: Callable[[], object] = single if not (tape.copies or copied) else lambda: self._with_copies(single, copied)

    def _with_copies(self, single: Callable[[], object], copied: Mapping[str, Real]) -> None:
        """Where rows are padded, inputs and outputs go through the wire's own memory."""
        self.tape.feed(self.input[None])
        single()
        for wire, view in copied.items():
            view[...] = self.tape.view(wire, 1)[0]
