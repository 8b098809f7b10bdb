"""What the classes of the data sets are: one sentence each, which a frozen backbone can compare a
text with (`backbone_prediction: class-texts`), and one word each, which a language model can say
after a text in its template (`verbaliser`). `label_texts.yaml` and `label_words.yaml` hold those of
our own sets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from inputs.files import read_yaml

Key = Literal["label_texts", "label_words"]
_WANTED = {"label_texts": "sentence", "label_words": "word"}
_TO_SAY = {
    "label_texts": "say in a sentence what a text of this class is about",
    "label_words": "say the word that a language model would say of a text of this class",
}


@functools.cache
def _shipped(key: Key) -> Mapping[str, Mapping[str, Any]]:
    return read_yaml(Path(__file__).with_name(f"{key}.yaml"))


def shipped(dataset: object, key: Key = "label_texts") -> Mapping[str, str]:
    """Class name -> sentence, or word, for a data set of ours; empty for any other."""
    found = _shipped(key).get(dataset, {}) if isinstance(dataset, str) else {}
    return found.get("words", {}) if key == "label_words" else found


def shipped_template(dataset: object) -> str | None:
    """What a language model reads a text of a data set of ours in; None for any other."""
    known = _shipped("label_words")
    return known.get(dataset, {}).get("template") if isinstance(dataset, str) else None


def problems(
    given: Mapping[str, str], class_names: Sequence[str], key: Key = "label_texts"
) -> Iterator[tuple[str, str]]:
    """What is wrong with a user's sentences, or words, for these classes: (class, or "" for the
    whole, what).
    """
    first: dict[str, str] = {}
    for name, text in given.items():
        if name not in class_names:
            near = get_close_matches(name, class_names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f" ({_few(class_names)})"
            yield name, f"no class is called {name!r}{hint}"
        elif not text.strip():
            yield name, f"is blank: {_TO_SAY[key]}"
        elif (other := first.setdefault(" ".join(text.split()), name)) != name:
            yield name, f"says what {other!r} says: nothing would tell the two apart"
    if missing := [name for name in class_names if name not in given]:
        yield "", f"says nothing of {_few(missing)}: every class needs a {_WANTED[key]}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more
