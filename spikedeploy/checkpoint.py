"""Store a model as plain data and get it back: `save`, `load`, and `load_model` for what the command line is given.

The file is one torch.save archive that loads with `weights_only=True`: `{"format", "version", "graph" (JSON text), "tensors" (a
state_dict)}`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy import __version__, foreign, torchfile
from spikedeploy.errors import BadInput, ModelRefused, SpikedeployError, message
from spikedeploy.exporters.atomic import write_bytes
from spikedeploy.graph import FUNCTIONS, METHODS, Graph, Node, Ref, Traced
from spikedeploy.probe import example_of, guessed_example, plain_example, probe
from spikedeploy.rebuild import build, describe, tensors_of
from spikedeploy.trace import trace

FORMAT, VERSION = "spikedeploy.checkpoint", 1


def save(model: nn.Module, path: str | Path, example_input: Tensor) -> None:
    """Store `model` at `path`: its graph as JSON, its tensors as a state_dict, the example's shape and dtype.

    example_input `(T, B, *shape)`. The same model gives the same bytes. Written whole or not at all: a failure leaves the old file, and
    nothing beside it. Raises `ModelRefused` where the model cannot be traced or holds a layer that is not plain data, `BadInput` where
    the file cannot be written.
    """
    example = example_of(model, example_input)
    write_bytes(path, dump(model, example))


def dump(model: nn.Module, example: Tensor) -> bytes:
    """The checkpoint's bytes."""
    graph, layers, tensors = trace(model, example)
    described = {path: describe(path, layer) for path, layer in layers.items()}
    probe(model, graph, layers, tensors, example).check(model)
    stored = {key: _own(value) for key, value in sorted(_state(layers, tensors).items())}
    header = {
        "producer": f"spikedeploy {__version__}",
        "input": plain_example(example),
        "layers": described,
        "tensors": list(tensors),
        "learned": sorted(key for key, value in _state(layers, tensors).items() if isinstance(value, nn.Parameter)),
        "nodes": [_plain_node(node) for node in graph.nodes],
        "steps": {path: [_plain_node(node) for node in inner.nodes] for path, inner in graph.steps.items()},
    }
    buffer = io.BytesIO()
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=True)
    torch.save({"format": FORMAT, "version": VERSION, "graph": text, "tensors": stored}, buffer)
    return buffer.getvalue()


def _state(layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors by full name; parameters as such."""
    found = {f"{path}.{key}": value for path, layer in layers.items() for key, value in tensors_of(layer).items()}
    return found | dict(tensors)


def _own(value: Tensor) -> Tensor:
    """A copy with a storage of its own in the same memory order (bits of a product can depend on that)."""
    return value.detach().cpu().clone(memory_format=torch.preserve_format)


def _plain(value: Any) -> Any:
    """An argument as JSON: numbers, strings, None and lists as they are; everything else as a dict of one key."""
    if isinstance(value, Ref):
        return {"node": value.node}
    if isinstance(value, tuple):
        return {"tuple": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[key, _plain(item)] for key, item in value.items()]}  # in its own order
    if isinstance(value, slice):
        return {"slice": [_plain(value.start), _plain(value.stop), _plain(value.step)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return {"ellipsis": True} if value is Ellipsis else value


def _value(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_value(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, item),) = plain.items()
    if kind == "dtype":
        return torchfile.DTYPES[f"torch.{item}"]
    return _KINDS[kind](item)


_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "node": Ref,
    "tuple": lambda items: tuple(_value(item) for item in items),
    "dict": lambda items: {key: _value(item) for key, item in (items.items() if isinstance(items, dict) else items)},
    "slice": lambda items: slice(*(_value(item) for item in items)),
    "ellipsis": lambda _: Ellipsis,
}


def _plain_node(node: Node) -> list[Any]:
    return [node.name, node.op, node.target, _plain(node.args), _plain(dict(node.kwargs))]


def load(path: str | Path) -> nn.Module:
    """The model that `save` stored, in eval mode: same outputs bit for bit, same parameter names. Nothing from the file is run.

    Raises `BadInput` where the file is missing, damaged or of another kind, `ModelRefused` where it names a layer that this version does
    not know.
    """
    content = torchfile.read(path)
    where = f"file '{Path(path).name}'"
    if not _is_checkpoint(content):
        raise BadInput(
            message(
                where,
                f"it holds {_kind(content)}",
                "a checkpoint from spikedeploy.save is needed",
                "For a bare state_dict name the model that it belongs to: --model package.module:factory.",
            )
        )
    return _rebuild(where, content)


def _is_checkpoint(content: Any) -> bool:
    return isinstance(content, dict) and content.get("format") == FORMAT


def _kind(content: Any) -> str:
    if isinstance(content, dict) and content and all(isinstance(v, Tensor) for v in content.values()):
        return f"a bare state_dict of {len(content)} tensors"
    return f"a {type(content).__name__}"


def _rebuild(where: str, content: Mapping[str, Any]) -> Traced:
    if content.get("version") != VERSION:
        raise BadInput(
            message(
                where, f"{FORMAT} version {content.get('version')}", f"version {VERSION} is needed", "Use the spikedeploy that wrote it."
            )
        )
    try:
        header = json.loads(content["graph"])
        tensors = {str(key): value for key, value in content["tensors"].items() if isinstance(value, Tensor)}
        model = _model(header, tensors)
    except SpikedeployError:
        raise
    except RecursionError:
        raise BadInput(message(where, "its graph is nested too deeply", "a graph as spikedeploy.save writes it is needed")) from None
    except Exception as error:  # nonsense in the graph fails in whatever reads it first
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise BadInput(message(where, f"its graph is unreadable ({reason})", "a graph as spikedeploy.save writes it is needed")) from None
    return model


def _model(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Traced:
    learned, direct = set(header["learned"]), list(header["tensors"])
    shared = {key: nn.Parameter(value) if key in learned else value for key, value in tensors.items()}
    owned: dict[str, dict[str, Tensor]] = {path: {} for path in header["layers"]}
    for key, value in shared.items():
        owner = _owner(key, owned)
        if owner is None and key not in direct:
            raise ValueError(f"a tensor '{key}' of no layer")
        if owner is not None:
            owned[owner][key.removeprefix(f"{owner}.")] = value
    layers = {path: build(path, plain, owned[path]) for path, plain in header["layers"].items()}
    graph = Graph(_nodes(header["nodes"]), {path: Graph(_nodes(inner)) for path, inner in header["steps"].items()})
    return Traced(graph, layers, {path: shared[path] for path in direct}, header["input"]).eval()


def _owner(key: str, paths: Collection[str]) -> str | None:
    """The layer that a tensor belongs to: the longest path that its name begins with."""
    return max((path for path in paths if key.startswith(f"{path}.")), key=len, default=None)


def _nodes(plain: list[Any]) -> tuple[Node, ...]:
    nodes, known = [], set()
    for name, op, target, args, kwargs in plain:
        allowed = {"function": target in FUNCTIONS, "method": target in METHODS}.get(
            op, op in ("input", "module", "tensor", "output", "over_time")
        )
        if not allowed or not isinstance(name, str) or name in known:
            raise ModelRefused(
                message(f"operation '{name}'", f"the graph calls {op} '{target}'", "one of the known layers and operations is needed")
            )
        known.add(name)
        nodes.append(Node(name, op, target, _value(args), _value(kwargs)))
    return tuple(nodes)


def load_model(path: str | Path, model: str | None = None) -> nn.Module:
    """The model in a file, whichever of the accepted kinds it is: a checkpoint of `save`; a bare state_dict with `model` =
    `package.module:factory`, a function without arguments that makes the module; or an `nn.Sequential` of known layers pickled whole by
    `torch.save`.

    Raises `BadInput` or `ModelRefused`; nothing from the file is run. The factory is the caller's own code and is.
    """
    where = f"file '{Path(path).name}'"
    content = torchfile.read(path, foreign.pickled_names())
    if _is_checkpoint(content):
        return _rebuild(where, content)
    if isinstance(content, torchfile.Recorded):
        try:
            stack = foreign.sequential(content)
            if isinstance(stack, nn.Sequential):
                stack.__dict__["example"] = guessed_example(stack)
            return stack
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise BadInput(message(where, f"its layers are unreadable ({error})", "a checkpoint from spikedeploy.save is needed")) from None
    if isinstance(content, dict):
        content = next((content[key] for key in foreign.STATE_KEYS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadInput(
            message(where, f"it holds {_kind(content)}", "a checkpoint from spikedeploy.save, a state_dict or an nn.Sequential is needed")
        )
    if model is None:
        raise BadInput(
            message(
                where,
                f"it holds {_kind(content)}",
                "the model that it belongs to is needed",
                "Name a function that makes it: --model package.module:factory.",
            )
        )
    return foreign.filled(where, model, content)
