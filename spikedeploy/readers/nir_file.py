"""The HDF5 layout of a NIR file as plain data: no equations here, and no library but h5py.

/version                      text
/node/type                    "NIRGraph"
/node/nodes/<name>/type       the node kind; its parameters are data sets beside it; a nested graph is laid out like /node
/node/edges                   (E, 2) text, from and to
/node/metadata/...            free
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from spikedeploy.errors import BadInput, message
from spikedeploy.readers.hdf5_guard import content_digest, text_of, walk

DIGEST = "/node/metadata/digest"
MARK = b"spikedeploy"
_GRAPH_KEYS = {"type", "nodes", "edges", "metadata", "input_type", "output_type"}


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node: its kind and its parameters by name (arrays, or text such as `padding = "same"`)."""

    kind: str
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Nodes by name, edges, and the graph's metadata (text and numbers)."""

    nodes: Mapping[str, Node | Graph]
    edges: tuple[tuple[str, str], ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def parse(data: bytes) -> Graph:
    """The graph in the bytes of a NIR file. Raises `BadInput` on everything else, unsafe files included."""
    if not data.startswith(b"\x89HDF\r\n\x1a\n"):
        raise BadInput(message("NIR file", "it does not begin like HDF5", "a file written by nir.write is needed"))
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            objects = walk(file)
            graph = _top(file)
            _check_digest(data, objects, graph)
            return graph
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError, UnicodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(message("NIR file", f"unreadable ({reason})", "a whole file written by nir.write is needed")) from None


def _check_digest(data: bytes, objects: list[tuple[str, Any]], graph: Graph) -> None:
    """Our own files carry a digest of their content; a file that says it is ours and has none was changed."""
    kept = graph.metadata.get("digest")
    if kept is None and "spikedeploy" not in graph.metadata and MARK not in data:
        return
    if kept != content_digest(objects, DIGEST):
        raise BadInput(
            message("NIR file", "its content does not match its digest", "an unchanged file is needed", "It was damaged or edited.")
        )


def _top(file: h5py.File) -> Graph:
    if "node" not in file or not isinstance(file["node"], h5py.Group):
        raise BadInput(message("NIR file", "it has no group 'node'", "a file written by nir.write is needed"))
    top = _node(file["node"], "node")
    if isinstance(top, Node):
        raise BadInput(message("NIR file", f"it holds a single {top.kind}", "a NIRGraph with an Input and an Output is needed"))
    return top


def _node(group: h5py.Group, where: str) -> Node | Graph:
    if "type" not in group:
        raise BadInput(message(f"node '{where}'", "it has no type", "every NIR node names its kind"))
    kind = text_of(group["type"][()])
    if kind == "NIRGraph":
        return _graph(group, where)
    params = {name: _value(item) for name, item in group.items() if isinstance(item, h5py.Dataset) and name != "type"}
    return Node(kind, params)


def _graph(group: h5py.Group, where: str) -> Graph:
    extra = sorted(set(group) - _GRAPH_KEYS)
    if extra or "nodes" not in group or "edges" not in group:
        found = f"an entry '{extra[0]}'" if extra else "no 'nodes' or no 'edges'"
        raise BadInput(message(f"graph '{where}'", found, "type, nodes, edges and metadata are read"))
    nodes = {name: _node(item, name) for name, item in group["nodes"].items()}
    metadata = (
        {name: _value(item) for name, item in group["metadata"].items() if isinstance(item, h5py.Dataset)} if "metadata" in group else {}
    )
    return Graph(nodes, _edges(group["edges"], where), metadata)


def _edges(item: h5py.Dataset, where: str) -> tuple[tuple[str, str], ...]:
    pairs = item[()]
    if pairs.size and (pairs.ndim != 2 or pairs.shape[1] != 2):
        raise BadInput(message(f"graph '{where}'", f"edges of shape {pairs.shape}", "(E, 2) is needed"))
    return tuple((text_of(a), text_of(b)) for a, b in pairs) if pairs.size else ()


def _value(item: h5py.Dataset) -> Any:
    value = item[()]
    if isinstance(value, (bytes, str)):
        return text_of(value)
    return np.asarray(value)
