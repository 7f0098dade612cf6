"""TensorFlow's checkpoints (V2) as plain arrays, read as data: no TensorFlow, no graph, nothing that runs.

`.index` is a LevelDB table: blocks of keys, each stored as what differs from the one before, and a footer
that says where the block of blocks lies. A value is a protocol buffer, `BundleEntryProto`: what a tensor is
and where it lies in `.data-00000-of-00001`. Source: TensorFlow, core/util/tensor_bundle, core/lib/io/format.
"""

import hashlib
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import reading

_MAGIC = 0xDB4775248B80FB57  # LevelDB's, the last eight bytes of a table
_FLOAT32 = 1  # as TensorFlow numbers its types; counters and the like are left out
_DTYPE, _SHAPE, _OFFSET, _SIZE = 1, 2, 4, 5  # fields of BundleEntryProto, none of which is written if 0


def read(folder: Path, sha256: str, mend: str) -> dict[str, np.ndarray]:
    """The float32 tensors of a checkpoint by name, read-only.

    `folder` holds `.index` and `.data-00000-of-00001`, and `sha256` is of both, one after the other. Raises
    FileNotFoundError, and ValueError with `mend` if they are damaged, or not those that were published.
    """
    with reading(folder, mend):
        index, data = ((folder / name).read_bytes() for name in (".index", ".data-00000-of-00001"))
        tensors = parse(index, data)
        if hashlib.sha256(index + data).hexdigest() != sha256:
            raise ValueError("not the bytes that were published")
    return tensors


def parse(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """The float32 tensors that `index` describes and `data` holds; raises for damage that shows."""
    footer = _cut(index, len(index) - 48, 48)
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise ValueError("no LevelDB table")
    _, _, *root = _varints(footer, 4)  # past the place and size of the block of metadata
    found = {}
    for _, place in _block(index, *root):
        for name, value in _block(index, *_varints(place, 2)):
            entry = dict(_fields(value))
            if name and entry.get(_DTYPE) == _FLOAT32:  # the entry without a name is about the whole file
                shape = [dict(_fields(dim)).get(1, 0) for _, dim in _fields(entry[_SHAPE])]
                raw = _cut(data, entry.get(_OFFSET, 0), entry.get(_SIZE, 0))
                if len(raw) != 4 * math.prod(shape):
                    raise ValueError(f"{name!r} of shape {shape} has {len(raw)} bytes")
                found[name.decode()] = np.frombuffer(raw, "<f4").reshape(shape)
    return found


def _block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; behind it stands how it was compressed."""
    block, (compression,) = _cut(table, start, size), _cut(table, start + size, 1)
    if compression:
        raise ValueError("a compressed block")
    (restarts,) = struct.unpack("<I", _cut(block, size - 4, 4))
    key, at, end = b"", 0, size - 4 - 4 * restarts
    while at < end:
        shared, own, length, at = _varints(block[at:end], 3, at)
        key = _cut(key, 0, shared) + _cut(block, at, own)
        yield key, _cut(block, at + own, length)
        at += own + length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varints(message[at:], 1, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varints(message[at:], 1, at)
        elif kind == 2:
            length, at = _varints(message[at:], 1, at)
            value, at = _cut(message, at, length), at + length
        elif kind == 5:
            value, at = _cut(message, at, 4), at + 4
        else:
            raise ValueError(f"a field of kind {kind}")
        yield tag >> 3, value


def _varints(data: bytes, n: int, begin: int | None = None) -> list[int]:
    """`n` numbers of seven bits a byte, low ones first; and where they end, if data `begin` somewhere."""
    numbers, value, shift = [], 0, 0
    for at, byte in enumerate(data):
        value, shift = value | (byte & 127) << shift, shift + 7
        if byte < 128:
            numbers, value, shift = [*numbers, value], 0, 0
            if len(numbers) == n:
                return numbers if begin is None else [*numbers, begin + at + 1]
    raise ValueError("the data end within a number")


def _cut(data: bytes, start: int, size: int) -> bytes:
    """`size` bytes from `start`, all of them."""
    if start < 0 or size < 0 or start + size > len(data):
        raise ValueError(f"bytes {start} to {start + size} of {len(data)}")
    return data[start : start + size]
