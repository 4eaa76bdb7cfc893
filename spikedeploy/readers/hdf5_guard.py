"""Is an HDF5 file safe to read? Everything is judged from declarations (links, types, sizes); no data is read before all of it has passed.

Refused: soft and external links (they reach other files or nowhere), external and virtual storage (the same), one object under two names
(cycles, and bombs made of repetition), groups deeper than 16, more than 20,000 objects, filters that HDF5 would load from a plug-in,
types that are not plain numbers or text, and data that expands beyond a total budget or beyond a ratio that trained weights never reach.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import h5py
import numpy as np

from spikedeploy.errors import BadInput, message

MAX_DEPTH = 16
MAX_OBJECTS = 20_000
MAX_BYTES = 1 << 30
"""Everything in the file together, after expansion."""
FREE_BYTES = 1 << 24
"""Below this many bytes a data set may be compressed as well as it likes (a zero bias compresses 1,000 times)."""
MAX_RATIO = 200
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}


def refuse(where: str, found: str, needed: str) -> BadInput:
    """The error for a file that may not be read."""
    return BadInput(message(where, found, needed, "Do not trust this file."))


def walk(file: h5py.File) -> list[tuple[str, Any]]:
    """Every group and data set below the root, `(path, object)` in sorted order, after all checks. Raises `BadInput`."""
    seen: set[tuple[int, int]] = set()
    found: list[tuple[str, Any]] = []
    total = 0
    for path, item in _objects(file, "", 0, seen):
        found.append((path, item))
        if len(found) > MAX_OBJECTS:
            raise refuse("file", f"more than {MAX_OBJECTS} objects", "a graph has fewer")
        if isinstance(item, h5py.Dataset):
            total += _declared(path, item)
            if total > MAX_BYTES:
                raise refuse(f"'{path}'", f"{total} bytes declared up to here", f"at most {MAX_BYTES} are read")
    return found


def _objects(group: h5py.Group, prefix: str, depth: int, seen: set[tuple[int, int]]) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        raise refuse(f"'{prefix}'", f"groups nested deeper than {MAX_DEPTH}", "a graph is flatter")
    for name in sorted(group):
        path = f"{prefix}/{name}"
        link = group.get(name, getlink=True)
        if type(link) is not h5py.HardLink:
            raise refuse(f"'{path}'", f"it is a {type(link).__name__}", "only direct content is read")
        item = group[name]
        info = h5py.h5o.get_info(item.id)
        key = (info.fileno, info.addr)
        if key in seen:
            raise refuse(f"'{path}'", "the same object stands under two names", "each must stand once")
        seen.add(key)
        yield path, item
        if isinstance(item, h5py.Group):
            yield from _objects(item, path, depth + 1, seen)
        elif not isinstance(item, h5py.Dataset):
            raise refuse(f"'{path}'", f"it is a {type(item).__name__}", "groups and data sets are read")


def _declared(path: str, item: h5py.Dataset) -> int:
    """How many bytes the data set will take in memory."""
    if item.external or item.is_virtual:
        raise refuse(f"'{path}'", "its data lies in another file", "only direct content is read")
    text = h5py.check_string_dtype(item.dtype)
    if item.dtype.kind not in "fiubS" and text is None:
        raise refuse(f"'{path}'", f"it holds {item.dtype}", "numbers or text are read")
    if item.shape is None:
        raise refuse(f"'{path}'", "it is empty", "a value is needed")
    plist = item.id.get_create_plist()
    unknown = [plist.get_filter(i)[0] for i in range(plist.get_nfilters()) if plist.get_filter(i)[0] not in FILTERS]
    if unknown:
        raise refuse(f"'{path}'", f"it is packed by filter {unknown[0]}", "gzip, lzf, shuffle and fletcher32 are read")
    size = int(np.prod(item.shape, dtype=object)) * item.dtype.itemsize
    stored = item.id.get_storage_size()
    if size > FREE_BYTES and size > MAX_RATIO * max(stored, 1):
        raise refuse(f"'{path}'", f"{stored} bytes that expand to {size}", f"at most {MAX_RATIO} times is read")
    if size > MAX_BYTES:
        raise refuse(f"'{path}'", f"{size} bytes declared", f"at most {MAX_BYTES} are read")
    return size


def text_of(value: Any) -> str:
    """HDF5 text as str."""
    return value.decode("utf8") if isinstance(value, bytes) else str(value)


def content_digest(objects: list[tuple[str, Any]], without: str) -> str:
    """SHA-256 over the path, type, shape and value of every data set but the one at `without`.

    Text counts as its UTF-8 bytes and numbers as little-endian, so the digest does not depend on chunks, compression or the machine.
    """
    total = sha256()
    for path, item in objects:
        if isinstance(item, h5py.Group):
            total.update(f"group {path}\n".encode())
        elif path != without:
            value = np.asarray(item[()])
            if value.dtype.kind in "OSU":
                texts = [text_of(entry).encode() for entry in value.ravel()]
                data = b"".join(len(entry).to_bytes(8, "little") + entry for entry in texts)
                kind = "text"
            else:
                little = value.astype(value.dtype.newbyteorder("<"), copy=False)
                data, kind = little.tobytes(), little.dtype.str
            total.update(f"data {path} {kind} {list(value.shape)} {len(data)}\n".encode())
            total.update(data)
    return total.hexdigest()
