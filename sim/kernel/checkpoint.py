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
from typing import Protocol, runtime_checkable

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from sim.kernel.writing import Json

RECORDS = {
    "ServerMoments": "learning.federated.aggregation",
    "Moments": "learning.federated.split",
}  # the dataclasses that values may hold


@runtime_checkable
class Tensor(Protocol):
    """What is asked of torch's tensors, which only learning imports."""

    def detach(self) -> Tensor:
        """Without its history."""

    def clone(self) -> Tensor:
        """A copy in memory of its own."""

    def numpy(self) -> np.ndarray:
        """The same memory as an array."""


class Packed:
    """Values by their keys, ready to be written: references only, nothing is copied."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._names: dict[tuple[object, ...], str] = {}
        self._index = {key: self._plain(value) for key, value in values.items()}

    @property
    def nbytes(self) -> int:
        """What the arrays come to."""
        return sum(array.nbytes for array in self._arrays.values())

    def write(self, path: Path, position: int, notes: int) -> None:
        """Write everything, with a checksum."""
        header = {"position": str(position), "notes": str(notes), "index": json.dumps(self._index)}
        crc32 = _sum(header, self._arrays, self._arrays.__getitem__)
        save_file(self._arrays, path, {**header, "crc32": crc32})

    def _plain(self, value: object) -> list[Json]:
        """[what it is, ...]: what JSON can hold of a value, with names for its arrays."""
        if value is None or isinstance(value, bool | int | float | str):
            return ["is", value]
        if isinstance(value, bytes):
            return ["bytes", self._name(np.frombuffer(value, np.uint8))]
        if isinstance(value, np.ndarray):
            return ["array", self._name(value)]
        if isinstance(value, Mapping):
            return ["dict", [[self._plain(name), self._plain(one)] for name, one in value.items()]]
        if isinstance(value, list | tuple) and type(value) in (list, tuple):
            return [type(value).__name__, [self._plain(one) for one in value]]
        if type(value).__name__ in RECORDS:
            return [type(value).__name__, [self._plain(one) for one in vars(value).values()]]
        if isinstance(value, Tensor):
            return ["tensor", self._name(value.detach().numpy())]
        raise TypeError(f"no learner may store a value of the type {type(value).__name__}")

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
        self._path = path
        self._shared: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()
        try:
            with safe_open(path, framework="numpy") as file:
                header = dict(file.metadata())
                if header.pop("crc32") != _sum(header, file.keys(), file.get_tensor):
                    raise ValueError("its content is not what was written")
            self.position = int(header["position"])
            self.notes = int(header["notes"])
            self._index = json.loads(header["index"])
        except Exception as error:  # whatever a damaged file makes its readers say
            raise ValueError(
                f"{path}: damaged ({(str(error) or type(error).__name__).splitlines()[0][:120]})"
            ) from error

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def __getitem__(self, key: str) -> object:
        with safe_open(self._path, framework="pt") as file:
            return self._value(file.get_tensor, self._index[key])

    def _value(self, tensor_of: Callable[[str], Tensor], packed: Json) -> object:
        match packed:
            case ["is", content]:
                return content
            case ["bytes", str(name)]:
                return tensor_of(name).numpy().tobytes()
            case ["array", str(name)]:
                return tensor_of(name).numpy().copy()
            case ["tensor", str(name)]:
                shared = self._shared.get(name)
                if shared is None:  # a copy, which is not the file's own memory
                    self._shared[name] = shared = tensor_of(name).clone()
                return shared
            case ["dict", list(pairs)]:
                return {
                    self._value(tensor_of, pair[0]): self._value(tensor_of, pair[1])
                    for pair in pairs
                    if isinstance(pair, list)
                }
            case [str(what), list(content)]:
                made = [self._value(tensor_of, one) for one in content]
                if what in ("list", "tuple"):
                    return made if what == "list" else tuple(made)
                return getattr(import_module(RECORDS[what]), what)(*made)
        raise ValueError(f"{self._path}: {packed!r} is nothing that was written")


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
