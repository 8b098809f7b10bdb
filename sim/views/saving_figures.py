"""Saving a figure: what a user named is drawn as it is written, not as mathematics, and leaves room
for the panels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, ScalarFormatter

LONGEST = 40  # characters of a name in a figure


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
    for legend in figure.findobj(Legend):
        for text in legend.get_texts():
            text.set_text("\n".join(map(shortened, text.get_text().splitlines())))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=metadata)
    return path


def shortened(name: str, most: int = LONGEST) -> str:
    """A name without its middle, where it is long: names that begin alike differ by their ends."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[half + 1 - most :]}"
