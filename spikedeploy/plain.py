"""Programs as plain bytes and back: for digests, for child processes, for caches. No pickle, no code.

Layout: 8 bytes little-endian header length, a JSON header (sorted keys), then the arrays one after another, C order, little endian.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np

from spikedeploy.errors import BadInput, message
from spikedeploy.program import Output, Program
from spikedeploy.steps import KINDS, Step

FORMAT, VERSION = "spikedeploy.program", 1
_DTYPES = {"<f4", "<f8", "<i4", "<i8", "|i1", "<i2"}


def dump_program(program: Program, *, with_notes: bool = True) -> bytes:
    """The program as bytes; the same program gives the same bytes on every machine."""
    arrays: list[np.ndarray[Any, Any]] = []

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            little = np.ascontiguousarray(value).reshape(value.shape).astype(value.dtype.newbyteorder("<"), copy=False)
            arrays.append(little)
            return {"array": len(arrays) - 1, "dtype": little.dtype.str, "shape": list(value.shape)}
        return list(value) if isinstance(value, tuple) else value

    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "input": {"shape": list(program.input_shape), "kind": program.input_kind},
        "outputs": [{"name": o.name, "wire": o.wire, "reduce": o.reduce} for o in program.outputs],
        "steps": [{"kind": type(s).__name__, **{f.name: plain(getattr(s, f.name)) for f in fields(s)}} for s in program.steps],
    }
    if with_notes:
        header |= {"origin": dict(program.origin), "notes": list(program.notes)}
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in arrays)])


def load_program(data: bytes) -> Program:
    """The program that `dump_program` wrote. Raises `BadInput` on anything else."""
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        if header["format"] != FORMAT or header["version"] != VERSION:
            raise ValueError(f"format {header['format']} {header['version']}")
        return _Reader(data, 8 + size).program(header)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(message("program bytes", f"unreadable ({error})", f"{FORMAT} version {VERSION} is needed")) from None


class _Reader:
    def __init__(self, data: bytes, offset: int) -> None:
        self.data, self.offset = data, offset

    def value(self, item: Any) -> Any:
        if isinstance(item, list):
            return tuple(item)
        if not isinstance(item, dict):
            return item
        if item["dtype"] not in _DTYPES:
            raise ValueError(f"dtype {item['dtype']}")
        dtype, shape = np.dtype(item["dtype"]), tuple(item["shape"])
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(self.data, dtype, count, self.offset).reshape(shape)
        self.offset += array.nbytes
        return array

    def step(self, item: dict[str, Any]) -> Step:
        kind = KINDS[item["kind"]]
        return kind(**{f.name: self.value(item[f.name]) for f in fields(kind)})

    def program(self, header: dict[str, Any]) -> Program:
        return Program(
            input_shape=tuple(header["input"]["shape"]),
            input_kind=header["input"]["kind"],
            steps=tuple(self.step(item) for item in header["steps"]),
            outputs=tuple(Output(**item) for item in header["outputs"]),
            origin=header.get("origin", {}),
            notes=tuple(header.get("notes", ())),
        )
