"""The most memory that a run takes of its host."""

import sys
from contextlib import suppress
from pathlib import Path

import psutil


def forget_peak_rss() -> None:
    """Let the peak begin anew: what this process did before is not of the run. Linux alone can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_rss_bytes() -> int:
    """The most memory that this process has held since its peak was forgotten; Windows tells it in
    another place than all others do.
    """
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
