"""Safetensors files read and written block by block, so that memory stays at a few megabytes.

The safetensors package maps whole files and writes them from memory; weights of 140 GB need
neither. The bytes written depend on the content alone: keys are sorted, no time is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kuznia.errors import InputError
from kuznia.sources import is_model_file

BLOCK_ROWS = 512
"""Rows of a weight handled at once."""
COPY_BYTES = 8 * 2**20
DTYPES = {"BF16": ("bfloat16", 2), "F16": ("float16", 2), "F32": ("float32", 4)}
"""Number formats that can be changed: safetensors' name, torch's name, bytes."""

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in all."""


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies."""

    path: Path
    dtype: str
    """safetensors' name of the number format."""
    shape: tuple[int, ...]
    start: int
    """Its first byte in the file."""
    bytes: int

    @property
    def width(self) -> int:
        """Numbers in a row: the last dimension."""
        return self.shape[-1] if self.shape else 1

    @property
    def rows(self) -> int:
        """How many such rows; a vector is one."""
        return math.prod(self.shape[:-1])


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, by name; InputError if there are none.

    A base in the store from before may hold a second copy of its weights, which is passed over.
    """
    found: dict[str, Tensor] = {}
    for path in sorted(path for path in folder.glob("*.safetensors") if is_model_file(path.name)):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            shape = tuple(entry["shape"])
            found[name] = Tensor(path, entry["dtype"], shape, 8 + length + first, last - first)
    if not found:
        raise InputError(f"{folder}: has no .safetensors files; convert the weights first")
    return found


def read_rows(file: BinaryIO, tensor: Tensor, first: int, count: int) -> Any:
    """`count` rows of a tensor from row `first`, [count, width] in its own number format."""
    import torch

    if tensor.dtype not in DTYPES:
        raise InputError(
            f"{tensor.path}: weights of type {tensor.dtype} cannot be changed; use a base in "
            "bfloat16, float16 or float32"
        )
    name, size = DTYPES[tensor.dtype]
    data = bytearray(count * tensor.width * size)
    file.seek(tensor.start + first * tensor.width * size)
    if file.readinto(data) != len(data):  # type: ignore[attr-defined]
        raise InputError(f"{tensor.path}: ends too early; fetch the folder again")
    return torch.frombuffer(data, dtype=getattr(torch, name)).view(count, tensor.width)


def rewrite(
    target: Path,
    tensors: dict[str, Tensor],
    changed: Set[str],
    change: Callable[[str, int, Any], Any],
    say: Progress = lambda *_: None,
) -> float:
    """Write `tensors` into files of the same names in folder `target`, some of them changed.

    `change(name, first row, rows as float32)` gives the new rows of a tensor in `changed`; they
    are rounded once to the tensor's number format. Returns the share of the numbers in `changed`
    that came out as they were. Raises InputError for a new number that is not finite.
    """
    import torch

    # Blocks are so small that a second thread waits longer than it works.
    torch.set_num_threads(1)
    total, done, same = sum(tensor.bytes for tensor in tensors.values()), 0, 0
    for path in sorted({tensor.path for tensor in tensors.values()}):
        names = sorted(name for name, tensor in tensors.items() if tensor.path == path)
        with path.open("rb") as source, (target / path.name).open("wb") as out:
            out.write(_header(names, tensors))
            for name in names:
                if name in changed:
                    for first, rows in _blocks(source, tensors[name]):
                        new = _rounded(change(name, first, rows.float()), rows.dtype, name)
                        same += int((new == rows).sum())
                        out.write(_bytes(new))
                else:
                    _copy(source, tensors[name], out)
                done += tensors[name].bytes
                say(done, total)
    return same / max(1, sum(math.prod(tensors[name].shape) for name in changed))


def _blocks(file: BinaryIO, tensor: Tensor) -> Iterator[tuple[int, Any]]:
    for first in range(0, tensor.rows, BLOCK_ROWS):
        yield first, read_rows(file, tensor, first, min(BLOCK_ROWS, tensor.rows - first))


def _rounded(rows: Any, dtype: Any, name: str) -> Any:
    import torch

    new = rows.to(dtype)
    if not torch.isfinite(new).all():
        raise InputError(
            f"{name}: the trained weights are not finite or too large for {dtype}; training "
            "diverged, lower learning_rate and train again"
        )
    return new


def _bytes(rows: Any) -> Any:
    import torch

    return rows.contiguous().view(torch.uint8).numpy().data


def _copy(source: BinaryIO, tensor: Tensor, out: BinaryIO) -> None:
    source.seek(tensor.start)
    left = tensor.bytes
    while left:
        chunk = source.read(min(COPY_BYTES, left))
        if not chunk:
            raise InputError(f"{tensor.path}: ends too early; fetch the folder again")
        out.write(chunk)
        left -= len(chunk)


def _header(names: list[str], tensors: dict[str, Tensor]) -> bytes:
    """The beginning of a safetensors file that holds `names` in this order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        tensor = tensors[name]
        offsets = [offset, offset + tensor.bytes]
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        offset += tensor.bytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
