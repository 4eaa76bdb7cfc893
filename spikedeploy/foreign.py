"""Files that spikedeploy did not write: a bare state_dict and the function that makes its model; a stack of layers pickled whole."""

from __future__ import annotations

import sys
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spikedeploy import torchfile
from spikedeploy.errors import BadInput, SpikedeployError, message
from spikedeploy.layers import LAYERS
from spikedeploy.probe import plain_example
from spikedeploy.rebuild import layer_name, recorded_layer

STATE_KEYS = ("state_dict", "model_state_dict", "model")
"""Under which names training scripts keep the state_dict among other things."""

WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")
"""Prefixes of wrapped models, the outermost first; torch.compile may stand on either side of DataParallel."""


def pickled_names() -> dict[str, str]:
    """The classes that a whole-pickled model may name, and how a checkpoint names them."""
    names = {f"{cls.__module__}.{cls.__qualname__}": layer_name(cls) for cls in LAYERS}
    return names | {"torch.nn.modules.container.Sequential": "torch.Sequential"}


def sequential(recorded: torchfile.Recorded, depth: int = 0) -> nn.Module:
    """Real layers from the recorded ones, built by their own constructors from the plain values that were stored."""
    if depth > 16:
        raise ValueError("containers nested deeper than 16")
    if recorded.kind != "torch.Sequential":
        return recorded_layer(recorded.kind, recorded.state)
    children = recorded.state["_modules"].items()
    return nn.Sequential(OrderedDict((name, sequential(child, depth + 1)) for name, child in children)).eval()


def filled(where: str, factory: str, state: dict[str, Tensor]) -> nn.Module:
    """The factory's model with the tensors of a state_dict, all of them and no others."""
    made = call_factory(factory)
    state = _unwrapped(state, made)
    try:
        missing, unexpected = made.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BadInput(
            message(
                where,
                f"its tensors do not fit {factory} ({' '.join(str(error).split())[:300]})",
                "tensors of the model's own shapes are needed",
            )
        ) from None
    if missing or unexpected:
        raise BadInput(
            message(
                where,
                f"its tensors do not fit {factory} (missing {missing[:3]}, unexpected {unexpected[:3]})",
                "the state_dict of that model is needed",
            )
        )
    return made.eval()


def _unwrapped(state: dict[str, Tensor], made: nn.Module) -> dict[str, Tensor]:
    """The state_dict without what DataParallel and torch.compile put in front of every name, where the model has no such name."""
    for prefix in WRAPPERS:
        wraps = all(key.startswith(prefix) for key in state) and not any(key.startswith(prefix) for key in made.state_dict())
        state = {key.removeprefix(prefix): value for key, value in state.items()} if wraps else state
    return state


def call_factory(factory: str) -> nn.Module:
    """The module that `package.module:function` makes; or `(module, example_input)`, and then the module remembers the example's shape.

    Modules are looked for where Python looks, and in the working directory.
    """
    where = f"--model {factory}"
    module, _, name = factory.partition(":")
    if not module or not name:
        raise BadInput(message(where, "it has no colon", "package.module:factory is needed"))
    try:
        made = getattr(_imported(module), name)()
        example = made[1] if isinstance(made, tuple) and len(made) == 2 else None
        made = made if example is None else made[0]
        if example is not None:
            made.__dict__["example"] = plain_example(example)
    except SpikedeployError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise BadInput(
            message(where, f"it failed ({type(error).__name__}: {error})", "a function without arguments that makes the model is needed")
        ) from None
    if not isinstance(made, nn.Module):
        raise BadInput(message(where, f"it made a {type(made).__name__}", "a torch module is needed"))
    return made


def _imported(module: str) -> Any:
    """The module of that name; a console script does not look in the working directory by itself."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        return import_module(module)
    finally:
        if added:
            sys.path.remove(here)
