"""TensorFlow's checkpoints (V2) as plain arrays, read as data: no TensorFlow, no graph, nothing that runs.

`.index` is a LevelDB table: blocks of keys, each stored as what differs from the one before, and a footer
that says where the block of blocks lies. A value is a protocol buffer, `BundleEntryProto`: what a tensor is
and where it lies in `.data-00000-of-00001`. Source: TensorFlow, core/util/tensor_bundle, core/lib/io/format.
"""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...errors import reading

_FLOAT32 = 1  # as TensorFlow numbers its types; counters and the like are left out
_DTYPE, _SHAPE, _OFFSET, _SIZE = 1, 2, 4, 5  # fields of BundleEntryProto, none of which is written if 0


def read(folder: Path, sha256: str, mend: str) -> dict[str, np.ndarray]:
    """The float32 tensors of a checkpoint by name, read-only.

    `folder` holds `.index` and `.data-00000-of-00001`, and `sha256` is of both, one after the other. Raises
    FileNotFoundError, and ValueError with `mend` if they aren't those that were published.
    """
    with reading(folder, mend):
        index, data = ((folder / name).read_bytes() for name in (".index", ".data-00000-of-00001"))
        if hashlib.sha256(index + data).hexdigest() != sha256:
            raise ValueError("not the bytes that were published")
    return parse(index, data)


def parse(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """The float32 tensors that `index` describes and `data` holds."""
    _, _, *root = _varints(index[-48:], 4)  # past the place and size of the block of metadata
    found = {}
    for _, place in _block(index, *root):
        for name, value in _block(index, *_varints(place, 2)):
            entry = dict(_fields(value))
            if name and entry.get(_DTYPE) == _FLOAT32:  # the entry without a name is about the whole file
                shape = [dict(_fields(dim)).get(1, 0) for _, dim in _fields(entry[_SHAPE])]
                start = entry.get(_OFFSET, 0)
                raw = data[start : start + entry.get(_SIZE, 0)]
                found[name.decode()] = np.frombuffer(raw, "<f4").reshape(shape)
    return found


def _block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block, which isn't compressed."""
    block = table[start : start + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    key, at, end = b"", 0, size - 4 - 4 * restarts
    while at < end:
        shared, own, length, at = _varints(block[at:end], 3, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer: numbers, bytes, and four bytes of a checksum."""
    at = 0
    while at < len(message):
        tag, at = _varints(message[at:], 1, at)
        if tag & 7 == 0:
            value, at = _varints(message[at:], 1, at)
        else:
            size, at = (4, at) if tag & 7 == 5 else _varints(message[at:], 1, at)
            value, at = message[at : at + size], at + size
        yield tag >> 3, value


def _varints(data: bytes, n: int, begin: int | None = None) -> list[int]:
    """`n` numbers of seven bits a byte, low ones first; and where they end, if data `begin` somewhere."""
    numbers, value, shift, at = [], 0, 0, 0
    while len(numbers) < n:
        value, shift = value | (data[at] & 127) << shift, shift + 7
        if data[at] < 128:
            numbers, value, shift = [*numbers, value], 0, 0
        at += 1
    return numbers if begin is None else [*numbers, begin + at]
