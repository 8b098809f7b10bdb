"""A file of learned values: plain structures of tensors, arrays, bytes and numbers, as safetensors;
no code is in it or run.

A tensor that several values share is written once, and shared again when it is read.
"""

from __future__ import annotations

import json
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

RECORDS = {
    "ServerMoments": "learning.federated.aggregation",
    "Moments": "learning.federated.split",
}  # the dataclasses that values may hold


class Packed:
    """Values by their keys, ready to be written: references only, nothing is copied."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}
        self._index = {key: self._plain(value) for key, value in values.items()}

    @property
    def nbytes(self) -> int:
        """What the arrays come to."""
        return sum(array.nbytes for array in self._arrays.values())

    def write(self, path: Path, position: int, notes: int) -> None:
        """Write everything, with a checksum."""
        header = {"position": str(position), "notes": str(notes), "index": json.dumps(self._index)}
        save_file(
            self._arrays, path, {**header, "crc32": _sum(header, self._arrays, self._arrays.get)}
        )

    def _plain(self, value: Any) -> list:
        """[what it is, ...]: what JSON can hold of a value, with names for its arrays."""
        if value is None or isinstance(value, bool | int | float | str):
            return ["is", value]
        if isinstance(value, bytes):
            return ["bytes", self._name(np.frombuffer(value, np.uint8))]
        if isinstance(value, np.ndarray):
            return ["array", self._name(value)]
        if isinstance(value, Mapping):
            return ["dict", [[self._plain(name), self._plain(one)] for name, one in value.items()]]
        if type(value) in (list, tuple):
            return [type(value).__name__, [self._plain(one) for one in value]]
        if type(value).__name__ in RECORDS:
            return [type(value).__name__, [self._plain(one) for one in vars(value).values()]]
        return [
            "tensor",
            self._name(value.detach().numpy()),
        ]  # a tensor, or a value that no learner may store

    def _name(self, array: np.ndarray) -> str:
        where = (array.ctypes.data, array.dtype.str, array.shape, array.strides)
        if array.nbytes == 0 or where not in self._names:
            self._names[where] = str(len(self._arrays))
            # safetensors writes an array's memory as it lies, whatever its strides
            self._arrays[self._names[where]] = np.asarray(array, order="C")
        return self._names[where]


class Checkpoint:
    """A file that `Packed` wrote, whole: `position`, `notes` and, by key, the values. ValueError
    for any other file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._shared = path, weakref.WeakValueDictionary()
        try:
            with safe_open(path, framework="numpy") as file:
                header = dict(file.metadata())
                if header.pop("crc32") != _sum(header, file.keys(), file.get_tensor):
                    raise ValueError("its content is not what was written")
            self.position, self.notes = int(header["position"]), int(header["notes"])
            self._index = json.loads(header["index"])
        except Exception as error:  # whatever a damaged file makes its readers say
            raise ValueError(
                f"{path}: damaged ({(str(error) or type(error).__name__).splitlines()[0][:120]})"
            ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __getitem__(self, key: str) -> Any:
        with safe_open(self._path, framework="pt") as file:
            return self._value(file, *self._index[key])

    def _value(self, file: Any, what: str, content: Any) -> Any:
        if what == "is":
            return content
        if what in ("bytes", "array"):
            array = file.get_tensor(content).numpy().copy()
            return array.tobytes() if what == "bytes" else array
        if what == "tensor":
            if content not in self._shared:
                self._shared[content] = tensor = file.get_tensor(
                    content
                ).clone()  # not the file's own memory
                return tensor
            return self._shared[content]
        if what == "dict":
            return {self._value(file, *name): self._value(file, *one) for name, one in content}
        made = [self._value(file, *one) for one in content]
        if what in ("list", "tuple"):
            return made if what == "list" else tuple(made)
        return getattr(import_module(RECORDS[what]), what)(*made)


def _sum(
    header: Mapping[str, str], names: Iterable[str], array_of: Callable[[str], np.ndarray]
) -> str:
    """A checksum over header and arrays, one array at a time: quick, as it is against damage, not
    against malice.
    """
    found = zlib.crc32(json.dumps(header, sort_keys=True).encode())
    for name in sorted(names):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(
            np.ascontiguousarray(array_of(name)).reshape(-1).view(np.uint8).data, found
        )
    return f"{found:08x}"
