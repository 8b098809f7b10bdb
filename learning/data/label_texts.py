"""What the classes of the data sets are, one sentence each: what a frozen backbone can compare a
text with (`backbone_prediction: class-texts`). `label_texts.yaml` holds those of our own sets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from inputs.files import read_yaml

_FILE = Path(__file__).with_name("label_texts.yaml")


@functools.cache
def _shipped() -> Mapping[str, Mapping[str, str]]:
    return read_yaml(_FILE)


def shipped(dataset: str) -> Mapping[str, str]:
    """Class name -> sentence for a data set of ours; empty for any other."""
    return _shipped().get(dataset, {})


def problems(given: Mapping[str, str], class_names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a user's sentences for these classes: (class, or "" for the whole,
    what).
    """
    for name, text in given.items():
        if name not in class_names:
            near = get_close_matches(name, class_names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f" ({_few(class_names)})"
            yield name, f"no class is called {name!r}{hint}"
        elif not text.strip():
            yield name, "is blank: say in a sentence what a text of this class is about"
    if missing := [name for name in class_names if name not in given]:
        yield "", f"says nothing of {_few(missing)}: every class needs a sentence"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
