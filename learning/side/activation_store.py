"""On-disk store of frozen backbones' pooled activations, keyed by content and shared by every run
that needs them.

A frozen backbone's activation is a pure function of (backbone, arithmetic, readout, tokens), so it
is computed once. Values lie in immutable safetensors shards, one folder a (backbone, arithmetic,
readout), each written to a temporary name and renamed: a killed writer leaves nothing half-written,
and several processes may write at once. Each shard carries a checksum of its content; a damaged one
is dropped and its entries are computed again. What cannot be stored is told of and computed again
next time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
import uuid
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from learning.arithmetic import arithmetic
from learning.backbones.tokens import Tokens
from learning.cache import keep

_SHARD_ROWS = 512


class ActivationStore:
    """Pooled activations, float32 [layers + 1, hidden] a text, by backbone fingerprint, readout and
    token ids.

    What was computed by other arithmetic, on another kind of machine or by another torch, is not
    seen.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(
        self, fingerprint: str, readout: str, tokens: Tokens
    ) -> tuple[list[np.ndarray | None], np.ndarray]:
        """What is stored for these tokens (None where nothing is) and the indices of what is
        missing.
        """
        keys = [_key(tokens, i) for i in range(len(tokens))]
        wanted = dict.fromkeys(keys)
        for shard in sorted(self._folder(fingerprint, readout).glob("*.safetensors")):
            self._read_into(wanted, shard)
        values = [wanted[key] for key in keys]
        return values, np.array(
            [i for i, value in enumerate(values) if value is None], dtype=np.int64
        )

    def save(self, fingerprint: str, readout: str, tokens: Tokens, values: np.ndarray) -> None:
        """Store float32 values [n, layers + 1, hidden] for these tokens, durably, in shards."""
        folder = self._folder(fingerprint, readout)
        _sweep(folder)
        for start in range(0, len(tokens), _SHARD_ROWS):
            rows = range(start, min(start + _SHARD_ROWS, len(tokens)))
            keys = np.frombuffer(b"".join(_key(tokens, i) for i in rows), dtype=np.uint8).reshape(
                len(rows), 16
            )
            part = np.ascontiguousarray(values[rows.start : rows.stop], dtype=np.float32)
            tensors: dict[str, np.ndarray] = {"keys": keys.copy(), "values": part}
            notes = {"blake2b": _checksum(keys, part)}
            keep(
                folder / f"{uuid.uuid4().hex}.safetensors",
                functools.partial(save_file, tensors, metadata=notes),
            )

    def _folder(self, fingerprint: str, readout: str) -> Path:
        computed_by = hashlib.blake2b(arithmetic().encode(), digest_size=8).hexdigest()
        return self.root / fingerprint / computed_by / readout

    def _read_into(self, wanted: dict[bytes, np.ndarray | None], shard: Path) -> None:
        try:
            with safe_open(shard, framework="numpy") as file:
                keys = file.get_tensor("keys")
                here = [(row, bytes(key)) for row, key in enumerate(keys) if bytes(key) in wanted]
                if not here:
                    return
                values = file.get_tensor("values")
                if file.metadata().get("blake2b") != _checksum(keys, values):
                    raise ValueError("checksum")
        except (SafetensorError, OSError, ValueError, AttributeError):
            with contextlib.suppress(
                OSError
            ):  # it only ever held a copy of what can be computed again
                shard.unlink(missing_ok=True)
            return
        for row, key in here:
            wanted[key] = values[row]


def _sweep(folder: Path, stale_after_s: float = 86_400) -> None:
    """Remove what a killed writer left behind."""
    for leftover in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime > stale_after_s:
                leftover.unlink()


def _key(tokens: Tokens, index: int) -> bytes:
    digest = hashlib.blake2b(tokens.ids[index].tobytes(), digest_size=16)
    if tokens.segments is not None:
        digest.update(b"|" + tokens.segments[index].tobytes())
    return digest.digest()


def _checksum(keys: np.ndarray, values: np.ndarray) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(keys).data, digest_size=16)
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
