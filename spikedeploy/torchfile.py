"""Read a file that torch.save wrote, without running anything that is in it.

Such a file is a zip archive with a pickle (`data.pkl`) and one record per storage. Here the pickle is scanned before it is loaded, every
global it asks for is answered with an inert stand-in from a fixed list, and every tensor is checked against the bytes that are really
there before anything is allocated.
"""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikedeploy.errors import BadInput, message

MAX_FILE = 4 << 30
MAX_PICKLE = 16 << 20
MAX_INSTRUCTIONS = 2_000_000
MAX_EXPANSION = 1 << 20
"""Elements that a tensor with overlapping entries (stride 0) may have; a real checkpoint has a few."""

STORAGES: Mapping[str, torch.dtype] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Recorded:
    """A layer of a whole-pickled model: its class by name and the attributes that were stored; nothing of the class was run."""

    kind = ""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}


class RecordedSurrogate:
    """A surrogate gradient of ours in a whole-pickled model: its name and its number."""

    kind, k = "atan", 0.0

    def __setstate__(self, state: Any) -> None:
        kind, k = state
        if not isinstance(kind, str) or not isinstance(k, (int, float)):
            raise Hostile("a surrogate gradient of something else than a name and a number", "plain data is needed")
        self.kind, self.k = kind, float(k)


class _Storage:
    """One record of the archive: what a tensor is made of."""

    def __init__(self, dtype: torch.dtype, key: str, count: int, data: bytes) -> None:
        self.dtype, self.key, self.count, self.data = dtype, key, count, data


class Hostile(Exception):
    """What is wrong with the file; the reader adds where."""

    def __init__(self, found: str, needed: str = "", do: str = "") -> None:
        super().__init__(found)
        self.parts = found, needed, do


def read(path: str | Path, modules: Mapping[str, str] | None = None) -> Any:
    """What the file holds: dicts, lists, numbers, strings and tensors; layers as `Recorded` where `modules` (dotted class -> name) lists
    them.

    Raises `BadInput` with the reason on anything else.
    """
    where = f"file '{Path(path).name}'"
    try:
        data = _bytes(Path(path))
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _load(archive, len(data), modules or {})
    except Hostile as error:
        raise BadInput(message(where, *error.parts)) from None
    except OSError as error:
        raise BadInput(message(where, f"it cannot be read ({error.strerror or error})", "a readable file is needed")) from None
    except Exception as error:  # a damaged file makes zipfile and pickle raise almost anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise BadInput(
            message(
                where, f"it is damaged or was not written by torch.save ({reason})", "a file from spikedeploy.save or torch.save is needed"
            )
        ) from None


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise Hostile("it does not exist", "a file is needed", "Check the path.")
    if not path.is_file():
        raise Hostile("it is not a regular file", "a file is needed")
    if path.stat().st_size > MAX_FILE:
        raise Hostile(f"it has {path.stat().st_size} bytes", f"at most {MAX_FILE} are read")
    data = path.read_bytes()
    if not zipfile.is_zipfile(io.BytesIO(data)):
        _bare(data)
        raise Hostile(
            "it is not an archive as torch.save writes it", "a file from spikedeploy.save or torch.save (torch 1.6 or later) is needed"
        )
    return data


def _bare(data: bytes) -> None:
    """A pickle that is not in an archive is refused too; where it asks for a global, by that name."""
    if data[:1] != b"\x80" and data[:1] != b"c" and data[:1] != b"(":
        return
    try:
        _scan(data, {}) if len(data) <= MAX_PICKLE else None
        _Reader(data, None, {}, {}).load()
    except Hostile:
        raise
    except Exception:  # bytes that are no pickle make it raise almost anything; what they are is said by the caller
        return
    raise Hostile("it is a bare pickle", "a file from spikedeploy.save is needed")


def _load(archive: zipfile.ZipFile, size: int, modules: Mapping[str, str]) -> Any:
    names = [name.partition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise Hostile(
            "it is a TorchScript archive",
            "a file from spikedeploy.save is needed",
            "Save the eager model with spikedeploy.save(model, path, example).",
        )
    records = _records(archive, size)
    if "data.pkl" not in records:
        raise Hostile("it has no data.pkl", "a file from spikedeploy.save or torch.save is needed")
    if "byteorder" in records and archive.read(records["byteorder"]).strip() != b"little":
        raise Hostile("it was written in big-endian order", "little-endian is needed")
    if records["data.pkl"].file_size > MAX_PICKLE:
        raise Hostile(f"its structure takes {records['data.pkl'].file_size} bytes", f"at most {MAX_PICKLE} are read")
    code = archive.read(records["data.pkl"])
    _scan(code, modules)
    return _Reader(code, archive, records, modules).load()


def _records(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The records by name without the leading folder. torch.save stores them uncompressed and apart; anything else is refused by declared
    size."""
    infos = archive.infolist()
    if sum(info.file_size for info in infos) > size or any(
        info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size for info in infos
    ):
        total = sum(info.file_size for info in infos)
        raise Hostile(
            f"it declares {total} bytes of content in {size}", "records stored uncompressed, as torch.save writes them, are needed"
        )
    spans = sorted((info.header_offset, info.header_offset + info.compress_size) for info in infos)
    if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
        raise Hostile("its records overlap", "records of their own bytes are needed")
    names = [info.filename.partition("/")[2] for info in infos]
    if len(set(names)) != len(names):
        raise Hostile("a record appears twice", "each record once is needed")
    return dict(zip(names, infos, strict=True))


_BINARY = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_NEVER = frozenset({"EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEXT_BUFFER", "READONLY_BUFFER"})


def _scan(code: bytes, modules: Mapping[str, str]) -> None:
    """Read the pickle's instructions without following them: unknown globals are named, oversized arguments refused."""
    strings: list[str] = []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(code)):
        if count > MAX_INSTRUCTIONS:
            raise Hostile(f"its pickle has more than {MAX_INSTRUCTIONS} instructions", "a checkpoint has a few dozen per tensor")
        if opcode.name in _NEVER:
            raise Hostile(f"its pickle uses the instruction {opcode.name}", "plain data is needed")
        if opcode.name in _BINARY and int(str(argument)) > count:
            raise Hostile("its pickle numbers its objects out of order", "a file from spikedeploy.save is needed")
        if opcode.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            _answer(module, name, modules)
        if "UNICODE" in opcode.name or "STRING" in opcode.name:
            strings.append(str(argument))
        if opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
            _answer(strings[-2], strings[-1], modules)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """The tensor, after its size and strides were checked against the storage's bytes."""
    if (
        not isinstance(storage, _Storage)
        or not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride))
        or len(size) != len(stride)
    ):
        raise Hostile("a tensor is made of something else than a storage and sizes", "plain tensors are needed")
    count, last = 1, offset
    for n, step in zip(size, stride, strict=True):
        count, last = count * n, last + max(n - 1, 0) * step
    if count and last >= storage.count:
        raise Hostile(f"a tensor of shape {tuple(size)} reaches entry {last} of {storage.count}", "a tensor inside its storage is needed")
    if count > max(storage.count, MAX_EXPANSION):
        raise Hostile(
            f"a tensor of shape {tuple(size)} declares {count} entries of a storage of {storage.count}",
            "tensors with entries of their own are needed",
        )
    if not count:
        return torch.empty(tuple(size), dtype=storage.dtype)
    flat = torch.frombuffer(bytearray(storage.data), dtype=storage.dtype)
    return flat.as_strided(tuple(size), tuple(stride), offset).clone()


def _rebuild_parameter(data: Any, requires_grad: Any = True, *rest: Any) -> nn.Parameter:
    if not isinstance(data, Tensor):
        raise Hostile("a parameter that is no tensor", "plain tensors are needed")
    return nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())


def _bypass(owner: Any, name: Any) -> str:
    """Pickle's way to store snnTorch's `_surrogate_bypass`; it stays a name."""
    if name != "_surrogate_bypass":
        raise Hostile(f"it asks for the attribute '{name}'", "plain data is needed")
    return "_surrogate_bypass"


class _Call:
    """A function that a pickle may call, and nothing else about it: its attributes cannot be set."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise Hostile("it tries to change a function", "plain data is needed")


_ALLOWED: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch.device": lambda *args: ":".join(map(str, args)),
    "builtins.set": set,
    "__builtin__.set": set,
    "builtins.getattr": _bypass,
    "__builtin__.getattr": _bypass,
    "snntorch._neurons.neurons.SpikingNeuron": lambda: None,
}
_FUNCTIONS = {name: _Call(function) for name, function in _ALLOWED.items()}
DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
}


def _answer(module: str, name: str, modules: Mapping[str, str]) -> Any:
    """The stand-in for a global that the pickle asks for; a name that is not on the list is refused."""
    full = f"{module}.{name}"
    if full in _FUNCTIONS:
        return _FUNCTIONS[full]
    if full in DTYPES:
        return DTYPES[full]
    if module == "torch" and name in STORAGES:
        return STORAGES[name]
    if full in modules:
        return type("Recorded", (Recorded,), {"kind": modules[full]})
    if modules and full == "spikedeploy.nn.surrogate.Surrogate":
        return type("RecordedSurrogate", (RecordedSurrogate,), {})
    raise Hostile(
        f"it asks to call {full}",
        "only tensors, numbers and known layers are read; nothing from a file is ever run",
        "If it is your own model, load it where its code is and store it with spikedeploy.save(model, path, example_input).",
    )


class _Reader(pickle.Unpickler):
    def __init__(
        self, code: bytes, archive: zipfile.ZipFile | None, records: Mapping[str, zipfile.ZipInfo], modules: Mapping[str, str]
    ) -> None:
        super().__init__(io.BytesIO(code), encoding="utf-8")
        self.archive, self.records, self.modules = archive, records, modules
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        return _answer(module, name, self.modules)

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not isinstance(count, int):
            raise Hostile("a reference to something else than a storage", "plain tensors are needed")
        if key not in self.storages:
            info = self.records.get(f"data/{key}")
            if info is None or self.archive is None or count * dtype.itemsize > info.file_size:
                raise Hostile(f"storage {key} declares {count} entries", f"{0 if info is None else info.file_size} bytes are there")
            self.storages[key] = _Storage(dtype, key, count, self.archive.read(info))
        found = self.storages[key]
        if found.dtype != dtype or found.count != count:
            raise Hostile(f"storage {key} is declared in two ways", "one dtype and size is needed")
        return found
