"""On-disk store of frozen backbones' pooled activations, keyed by content and shared by every run
that needs them.

A frozen backbone's activation is a pure function of (backbone, arithmetic, readout, tokens), so it
is computed once. Values lie in immutable safetensors shards, one folder a (backbone, arithmetic,
readout), each written to a temporary name and renamed: a killed writer leaves nothing half-written,
and several processes may write at once. Shards are mapped, not read: what was loaded stays although
its file is removed, and takes the memory of what is looked at. Each carries a checksum of its
content; a damaged one is dropped and its entries are computed again. What cannot be stored is told
of and computed again next time. Beyond its limit the store drops what was used least recently
(`learning/side/store_size.py`).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from inputs.units import format_bytes
from learning.arithmetic import arithmetic
from learning.backbones import batches
from learning.backbones.tokens import Tokens
from learning.cache import keep
from learning.side.store_size import LIMIT, limit_bytes, remove, shards, superfluous

_SHARD_ROWS = 512
_STEPS_TO_LIMIT = 16  # after so much of the limit has been written, the store looks at its size
_log = logging.getLogger(__name__)


class ActivationStore:
    """Pooled activations, float32 [layers + 1, hidden] a text, by backbone fingerprint, readout and
    token ids.

    What was computed by other arithmetic, on another kind of machine or by another torch, is not
    seen.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.limit_bytes = limit_bytes()
        self._mine: set[Path] = set()
        self._since_looked_bytes = 0

    def load(
        self, fingerprint: str, readout: str, tokens: Tokens
    ) -> tuple[list[np.ndarray | None], np.ndarray]:
        """What is stored for these tokens (None where nothing is), mapped and not to be written
        to, and the indices of what is missing.
        """
        keys = [_key(tokens, i) for i in range(len(tokens))]
        found: dict[bytes, np.ndarray] = {}
        missing = set(keys)
        for shard in sorted(self._folder(fingerprint, readout).glob("*.safetensors")):
            if not missing:
                break
            mapped = self._mapped(missing, shard)
            found |= mapped
            missing -= mapped.keys()
        values = [found.get(key) for key in keys]
        return values, np.array(
            [i for i, value in enumerate(values) if value is None], dtype=np.int64
        )

    def save(
        self, fingerprint: str, readout: str, tokens: Tokens, values: np.ndarray, backbone: str = ""
    ) -> None:
        """Store float32 values [n, layers + 1, hidden] for these tokens in shards; `backbone` is
        the name that people know it by.
        """
        folder = self._folder(fingerprint, readout)
        _sweep(folder)
        for start in range(0, len(tokens), _SHARD_ROWS):
            rows = range(start, min(start + _SHARD_ROWS, len(tokens)))
            keys = np.frombuffer(b"".join(_key(tokens, i) for i in rows), dtype=np.uint8).reshape(
                len(rows), 16
            )
            part = np.ascontiguousarray(values[rows.start : rows.stop], dtype=np.float32)
            tensors: dict[str, np.ndarray] = {"keys": keys.copy(), "values": part}
            notes = {"blake2b": _checksum(keys, part), "backbone": backbone}
            file = folder / f"{uuid.uuid4().hex}.safetensors"
            keep(file, functools.partial(save_file, tensors, metadata=notes))
            self._mine.add(file)
            self._since_looked_bytes += part.nbytes
            if self._since_looked_bytes > self.limit_bytes / _STEPS_TO_LIMIT:
                self.hold_to_limit()

    def hold_to_limit(self) -> None:
        """Drop what was used least recently, as far as the store is larger than it may be."""
        self._since_looked_bytes = 0
        dropped = remove(superfluous(shards(self.root), self.limit_bytes))
        if self._mine & {shard.file for shard in dropped}:
            _log.warning(
                f"the activations that this run needs take more than {LIMIT} "
                f"({format_bytes(self.limit_bytes)}): this run goes on, but the next one computes "
                "some of them again; allow more"
            )

    def _folder(self, fingerprint: str, readout: str) -> Path:
        computed_by = f"{arithmetic()}, batches {batches.VERSION}"
        digest = hashlib.blake2b(computed_by.encode(), digest_size=8).hexdigest()
        return self.root / fingerprint / digest / readout

    def _mapped(self, wanted: set[bytes], shard: Path) -> dict[bytes, np.ndarray]:
        """What a shard holds of what is wanted."""
        try:
            with safe_open(shard, framework="pt") as file:  # of torch's tensors alone it makes maps
                keys = file.get_tensor("keys").numpy()
                here = [(row, bytes(key)) for row, key in enumerate(keys) if bytes(key) in wanted]
                if not here:
                    return {}
                values = file.get_tensor("values").numpy()
                if file.metadata().get("blake2b") != _checksum(keys, values):
                    raise ValueError("checksum")
        except (OSError, RuntimeError):  # just dropped by another process, or not to be mapped now
            return {}
        except (SafetensorError, ValueError, AttributeError, KeyError, TypeError):
            with suppress(OSError):  # it only ever held a copy of what can be computed again
                shard.unlink(missing_ok=True)
            return {}
        with suppress(OSError):  # of a store that may only be read
            os.utime(shard)  # used now
        self._mine.add(shard)
        return {key: values[row] for row, key in here}


def _sweep(folder: Path, stale_after_s: float = 86_400) -> None:
    """Remove what a killed writer left behind."""
    for leftover in folder.glob("*.tmp"):
        with suppress(OSError):
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
