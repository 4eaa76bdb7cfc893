"""One small run of the traced model: it gives the shapes that lowering needs, and shows that the trace does what the model does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy.errors import BadInput, ModelRefused, message
from spikedeploy.graph import Graph, Node, Traced, interpret
from spikedeploy.nn.overtime import forget
from spikedeploy.trace import evaluating

STEPS, BATCH = 3, 2
"""T and B of the run: small, and different, so that no axis is mistaken for another."""


def example_of(model: nn.Module, example: Any) -> Tensor:
    """The example `(T, B, *shape)`, checked; for a loaded model zeros of the shape it was saved with."""
    if not isinstance(model, nn.Module):
        raise BadInput(message("model", f"a {type(model).__name__}", "a torch.nn.Module is needed", "Make one first, if it is a class."))
    known = getattr(model, "example", None)
    if example is None and isinstance(known, dict) and known:
        return torch.zeros(known["shape"], dtype=getattr(torch, known["dtype"]))
    if example is None:
        raise BadInput(message("example_input", "none was given", "a tensor (T, B, *shape) is needed: only its shape and dtype matter"))
    try:
        example = torch.as_tensor(example)
    except (TypeError, ValueError, RuntimeError):
        raise BadInput(message("example_input", f"a {type(example).__name__}", "a tensor (T, B, *shape) is needed")) from None
    if example.ndim < 2 or 0 in example.shape:
        raise BadInput(message("example_input", f"shape {tuple(example.shape)}", "(T, B, *shape) with every axis at least 1 is needed"))
    wanted = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    where = next((p.device for p in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    example = example.to(where, wanted if example.is_floating_point() else example.dtype)
    if example.is_complex() or example.dtype == torch.bool:
        raise BadInput(message("example_input", f"dtype {example.dtype}", "real or whole numbers are needed"))
    return example


def plain_example(example: Tensor) -> dict[str, Any]:
    """What a model remembers of its example: shape and dtype."""
    return {"shape": list(example.shape), "dtype": str(example.dtype).removeprefix("torch.")}


def guessed_example(model: nn.Sequential) -> dict[str, Any]:
    """An example for a plain stack, from the width that its first layers name; nothing where they name none."""
    for layer in model.modules():
        width = getattr(getattr(layer, "linear", layer), "in_features", None) or getattr(layer, "in_dim", None)
        if isinstance(width, int):
            return plain_example(torch.zeros(STEPS, BATCH, width))
        if not isinstance(layer, (nn.Sequential, nn.Identity, nn.Dropout)):
            return {}
    return {}


def flatten(value: Any) -> list[Any]:
    """A nested result as a flat list, in the order of the program's outputs."""
    if isinstance(value, Mapping):
        return [item for key in value for item in flatten(value[key])]
    if isinstance(value, (tuple, list)):
        return [item for part in value for item in flatten(part)]
    return [value]


class Probe:
    """The run: its input `x (T, B, ...)`, what every node gave in `results` (`output` last), and what the model itself gave, `expected`."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.results: dict[str, Any] = {}
        self.expected: Any = None

    def seen(self, node: Node, value: Any) -> Any:
        """Keep what a node gave; of a loop over time, what the first step gave."""
        self.results.setdefault(node.name, value)
        return value

    def check(self, model: nn.Module) -> None:
        """Raise `ModelRefused` where graph and model differ in one bit."""
        if self.expected is not None and not _same(self.expected, self.results["output"]):
            raise ModelRefused(
                message(
                    f"model ({type(model).__name__})",
                    "its forward does not do the same each time, or changes a tensor in place that is also used elsewhere",
                    "a forward whose layer calls and tensor operations say it all is needed",
                    "Write y = a + b for a += b, and leave out what is random or remembered between calls.",
                )
            )


def probe(model: nn.Module, graph: Graph, layers: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], example: Tensor) -> Probe:
    """Run model and graph on random numbers of the example's shape, with T and B of 3 and 2, or the example's own where the model insists.

    Raises `BadInput` where the model does not take such an input.
    """
    failed: Exception | None = None
    for shape in ((STEPS, BATCH, *example.shape[2:]), tuple(example.shape)):
        run = Probe(_numbers(shape, example))
        try:
            with torch.no_grad(), evaluating(model):
                run.results["output"] = interpret(graph, layers, tensors, run.x, run.seen)
                run.expected = None if isinstance(model, Traced) else _fresh(model, run.x)
        except ModelRefused:
            raise
        except Exception as error:  # any layer may refuse the shape in its own way
            failed = error
            continue
        return run
    raise _rejected(graph, layers, run, failed, example)


def _numbers(shape: tuple[int, ...], like: Tensor) -> Tensor:
    if not like.is_floating_point():
        return like.new_zeros(shape)
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(like)


def _fresh(model: nn.Module, x: Tensor) -> Any:
    """The model's own result, one-step neurons starting from zero."""
    forget(model)
    return model(x)


def _same(a: Any, b: Any) -> bool:
    """Equal bit for bit, NaN where NaN."""
    pairs = list(zip(flatten(a), flatten(b), strict=False))
    tensors = [(x, y) for x, y in pairs if isinstance(x, Tensor) and isinstance(y, Tensor)]
    return len(flatten(a)) == len(flatten(b)) and all(
        x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all()) for x, y in tensors
    )


def _rejected(graph: Graph, layers: Mapping[str, nn.Module], run: Probe, error: Exception | None, example: Tensor) -> Exception:
    node = next((n for n in graph.nodes if n.name not in run.results and n.op != "output"), None)
    where = f"layer '{node.target}' ({type(layers[node.target]).__name__})" if node is not None and node.op == "module" else "model"
    if "not tuple" in str(error):
        return ModelRefused(
            message(where, "its input is a tuple", "one tensor is needed", "Neurons return (spikes, membrane): pass one of them.")
        )
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    width = getattr(layers[node.target], "in_features", None) if node is not None and node.op == "module" else None
    needed = "an example (T, B, *shape) that the model accepts is needed"
    if width is not None and "dtype" not in reason:
        needed = f"an input whose last axis is {width} is needed"
    return BadInput(message(where, f"it fails on the example input of shape {tuple(example.shape)} ({reason})", needed))
