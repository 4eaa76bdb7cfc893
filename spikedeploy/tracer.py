"""The tracer: torch.fx with a shadow value behind every symbol, so that a forward may ask how many axes or parts there are.

`x.view(T * B, *x.shape[2:])`, `parts = list(x.chunk(2, -1))` and `x.ndim` need numbers that plain symbols do not have. How many steps
and samples there are stays a symbol.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from spikedeploy.loops import Sized
from spikedeploy.nn.spiking_ssm import SpikingSSM

OPEN = (nn.Sequential, nn.ModuleList, nn.ModuleDict, SpikingSSM)
"""Containers whose forward is traced instead."""
MISSING = object()


class Shaped(fx.Proxy):
    """A symbol that knows what it was in a small run (`MISSING` where that run failed)."""

    @property
    def shadow(self) -> Any:
        """The value of the small run."""
        return self.node.meta.get("shadow", MISSING)

    def __getattr__(self, name: str) -> Any:
        if name == "shape":
            return self.tracer.create_proxy("call_function", getattr, (self, "shape"), {})
        if name == "ndim" and isinstance(self.shadow, Tensor):
            return self.shadow.ndim
        return super().__getattr__(name)

    def dim(self) -> Any:
        """The number of axes."""
        return self.shadow.ndim if isinstance(self.shadow, Tensor) else super().__getattr__("dim")()

    def __len__(self) -> int:
        if isinstance(self.shadow, (tuple, list)):
            return len(self.shadow)
        return super().__len__()


class Tracer(fx.Tracer):
    """Leaves are what torch and snnTorch made, and our own layers; a user's class is looked into.

    shadow  an input for the small run; sizes  of the input, where a loop over time is to be unrolled
    """

    def __init__(self, shadow: Tensor | None, sizes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.shadow, self.sizes, self.inside = shadow, sizes, False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        home = type(m).__module__
        known = home.split(".")[0] in ("torch", "snntorch") or home.startswith("spikedeploy.nn")
        return known and not isinstance(m, OPEN)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Plain values are symbols with a shadow; the input knows its sizes where they were given."""
        if node.op == "placeholder" and self.sizes is not None:
            return Sized(node, self).with_sizes(self.sizes)
        return Shaped(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **others: Any) -> fx.Proxy:
        """As fx does, and run the same on the shadows."""
        proxy: fx.Proxy = super().create_proxy(kind, target, args, kwargs, *rest, **others)
        node, self.inside = proxy.node, True
        try:
            with torch.no_grad():
                node.meta["shadow"] = self._run(node, *_shadows((node.args, node.kwargs)))
        except Exception:  # a model's own code runs on shadows here and may raise anything; without a shadow it is traced all the same
            node.meta.pop("shadow", None)
        finally:
            self.inside = False
        return proxy

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of a symbol whose shadow says how many there are."""
        shadow = obj.node.meta.get("shadow")
        if isinstance(shadow, (tuple, list)) and not _over_leads(obj.node):
            return iter([operator.getitem(obj, i) for i in range(len(shadow))])
        found: Iterator[Any] = super().iter(obj)
        return found

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """A layer's call is recorded, unless it is the small run's own."""
        return forward(*args, **kwargs) if self.inside else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter is a symbol, unless the small run reads it."""
        return attr_val if self.inside else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        if node.op == "placeholder":
            return MISSING if self.shadow is None else self.shadow
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "get_attr":
            found: Any = self.root
            for part in target.split("."):
                found = getattr(found, part)
            return found
        return target(*args, **kwargs)


def _over_leads(node: fx.Node) -> bool:
    """Whether the parts are time steps or samples, whose number must not be frozen into the graph."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name not in ("unbind", "split"):
        return False
    dim = node.kwargs.get("dim", node.args[-1] if len(node.args) > (1 if name == "unbind" else 2) else 0)
    whole = node.args[0].meta.get("shadow") if isinstance(node.args[0], fx.Node) else None
    return not isinstance(dim, int) or not isinstance(whole, Tensor) or dim % whole.ndim < 2


def _shadows(value: Any) -> Any:
    """Nested arguments with shadows for symbols."""
    if isinstance(value, fx.Node):
        shadow = value.meta.get("shadow", MISSING)
        if shadow is MISSING:
            raise ValueError("no shadow")
        return shadow
    if isinstance(value, (tuple, list)):
        return type(value)(_shadows(item) for item in value) if type(value) in (tuple, list) else tuple(_shadows(item) for item in value)
    if isinstance(value, dict):
        return {key: _shadows(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(_shadows(value.start), _shadows(value.stop), _shadows(value.step))
    return value
