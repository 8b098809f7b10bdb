"""The Ray cluster that computes for us."""

from __future__ import annotations

import logging
import os
from types import ModuleType


class NoRay(ValueError):
    """Ray cannot be had; the message says what to install."""


def started() -> ModuleType:
    """Ray, connected: to the cluster of `RAY_ADDRESS` or the one that runs on this machine, else to
    a new one on this machine. NoRay where it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise NoRay("ray is not installed; run `pip install 'mobifleet[ray]'`") from error
    if not ray.is_initialized():
        # of a cluster begun here: Ray's own workers (15) starve beside anything else
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(
            logging_level=logging.CRITICAL,
            log_to_driver=False,
            include_dashboard=False,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        )
    module: ModuleType = ray
    return module
