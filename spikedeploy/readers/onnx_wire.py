"""A walk over the raw bytes of an ONNX file, before any parser: how many fields there are, how deep they nest, and what has no place here.

Protobuf is a sequence of (key, value); a value is a number, eight or four bytes, or a length and as many bytes. A file of 2-byte empty
messages becomes fifty times its size as objects, and 3,000 functions nested in each other overflow a runtime's stack; both are seen here.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_FIELDS = 400_000
"""An 8-layer cell has about 3,000."""


class Refused(Exception):
    """What was found and what is needed; the caller says where."""

    def __init__(self, found: str, needed: str = "") -> None:
        super().__init__(found)
        self.found, self.needed = found, needed


_SPARSE, _TYPE, _DEVICE = "!a sparse tensor", "!a type", "!a device configuration"
MESSAGES: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 8: "Leaf", 14: "Leaf", 20: "!a training graph", 25: "!a local function", 26: _DEVICE},
    "Graph": {
        **{1: "Node", 5: "Tensor", 11: "Value", 12: "Value", 13: "Value", 16: "Leaf"},
        **{14: "!a quantisation annotation", 15: _SPARSE},
    },
    "Node": {5: "Attribute", 9: "Leaf", 10: _DEVICE},
    "Attribute": {
        **{5: "Tensor", 6: "Graph"},
        **{10: "!a list of tensors", 11: "!a list of graphs", 14: _TYPE, 15: _TYPE, 22: _SPARSE, 23: _SPARSE},
    },
    "Tensor": {3: "!a segment", 13: "!external data", 16: "Leaf"},
    "Value": {2: "Type", 4: "Leaf"},
    "Type": {1: "TensorType", 4: "!a sequence", 5: "!a map", 7: "!an opaque type", 8: _SPARSE, 9: "!an optional type"},
    "TensorType": {2: "Shape"},
    "Shape": {1: "Leaf"},
    "Leaf": {},
}
"""Per message the fields that are messages themselves: which, or `!` and why not."""

MAX_DEPTH = 12
"""Model, graph, node, Scan body, node, attribute, tensor: deeper than that is no cell."""


def scan(data: bytes) -> None:
    """Raises `Refused` on bytes that are not an ONNX model, on too many fields, on nesting and on what is marked in `MESSAGES`."""
    left = MAX_FIELDS
    todo = [("Model", 0, len(data), 1)]
    while todo:
        kind, position, end, depth = todo.pop()
        inner = MESSAGES[kind]
        while position < end:
            left -= 1
            if not left:
                raise Refused(f"more than {MAX_FIELDS} fields", "a step cell has a few thousand")
            key, position = _varint(data, position, end)
            start, position = _value(data, key & 7, position, end)
            target = inner.get(key >> 3)
            if target is not None and key & 7 == 2:
                if target[0] == "!":
                    raise Refused(f"it holds {target[1:]}", "plain tensors and standard operators in one file are read")
                if depth == MAX_DEPTH:
                    raise Refused(f"messages nest deeper than {MAX_DEPTH}", "one Scan body is the deepest that is read")
                todo.append((target, start, position, depth + 1))


def _value(data: bytes, wire: int, position: int, end: int) -> tuple[int, int]:
    """Where a value starts and ends."""
    if wire == 0:
        _, after = _varint(data, position, end)
    elif wire == 2:
        length, position = _varint(data, position, end)
        after = position + length
    else:
        after = position + {1: 8, 5: 4}.get(wire, len(data) + 1)  # 3 and 4 are groups, which ONNX has not
    if after > end:
        raise Refused("not an ONNX file (it ends in the middle of a field)")
    return position, after


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
    raise Refused("not an ONNX file (a number has no end)")
