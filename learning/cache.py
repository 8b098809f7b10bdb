"""Keeping what was computed in the user's cache. One that takes nothing costs time, never a result:
it is told of as a warning of this module's logger, and the run goes on.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from learning.backbones import assets

_log = logging.getLogger(__name__)


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file that takes its place at the end; of a failure nothing stays
    but a warning.
    """
    temporary = file.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        _log.warning(
            f"the cache {assets.cache_dir()} takes nothing ({reason}): this run goes on, but the "
            "next one computes the "
            "same again; free space there or set MOBIFLEET_CACHE"
        )
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
