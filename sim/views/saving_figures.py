"""Saving a figure: what a user named is drawn as it is written, not as mathematics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter


def save(figure: Figure, path: Path, metadata: dict[str, Any] | None = None) -> Path:
    """Write the figure to a file, its folder made at need; `$` in any name is a `$`.

    Powers of ten of logarithmic axes are matplotlib's own mathematics and stay it.
    """
    numbers = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if isinstance(axis.get_major_formatter(), LogFormatter | ScalarFormatter):
                numbers.update([*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)])
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=metadata)
    return path
