"""A prompt: a text in its template, as a language model reads it before it says the class, and the
token that each class's word begins with there. No torch.

The template's own tokens are never cut away: where a prompt would be longer than `max_tokens`, its
text loses words at the end. Of a word of several tokens the first stands for it, as in OpenPrompt's
manual verbaliser by default (Ding et al., ACL 2022).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from learning.backbones.catalogue import BackboneError, BackboneSpec
from learning.backbones.tokens import Tokens, shortened, tokenise

TEXT, SECOND = "{text}", "{second_text}"
CONTENT_FREE = ("N/A", "[MASK]", "")  # of Zhao et al. (2021), section 5
_ANY_LENGTH = 1 << 20


def why_unfit(template: str, of_pairs: bool | None = None) -> str | None:
    """What is wrong with a template for single texts, or for pairs (None: not known which)."""
    wanted = {TEXT: True, SECOND: of_pairs}
    for place, is_there in wanted.items():
        times = template.count(place)
        if times > 1:
            return f"has {place} {times} times: once is where the text stands"
        if is_there and not times:
            return f"has no {place}, where a text stands: such as '{TEXT}\\nTopic:'"
        if is_there is False and times:
            return f"has {place}, and these texts are no pairs"
    return None


def filled(template: str, text: str, second: str = "") -> str:
    """The template with the text, or the pair, in its place; other braces are left as they are."""
    given = {TEXT: text, SECOND: second}
    pieces = re.split(f"({TEXT}|{SECOND})".replace("{", r"\{"), template)
    return "".join(given.get(piece, piece) for piece in pieces)


def prompts(
    spec: BackboneSpec,
    template: str,
    texts: Sequence[str],
    second_texts: Sequence[str] | None = None,
    max_tokens: int = 64,
) -> Tokens:
    """Texts (or pairs) in the template as the backbone's tokens, `max_tokens` at most in all.

    Raises BackboneError where the template alone takes as many, and what `tokenise` raises.
    """
    around = len(tokenise(spec, [filled(template, "")], None, _ANY_LENGTH).ids[0])
    columns = [texts] if second_texts is None else [texts, second_texts]
    room = (max_tokens - around) // len(columns)
    found: dict[int, np.ndarray] = {}
    left, is_cut = np.arange(len(texts)), [False] * len(texts)
    while len(left):
        if room < 1:
            raise BackboneError(
                f"max_tokens: {max_tokens} leaves no room for text beside the {around} tokens that "
                f"the template takes as {spec.name} reads it"
            )
        cut = [shortened(spec, [column[i] for i in left.tolist()], room) for column in columns]
        for i, *parts in zip(left.tolist(), *cut, strict=True):
            is_cut[i] = parts != [column[i] for column in columns]
        whole = [filled(template, *parts) for parts in zip(*cut, strict=True)]
        ids = tokenise(spec, whole, None, _ANY_LENGTH).ids
        fits = np.array([len(one) <= max_tokens for one in ids])
        found |= {int(i): one for i, one, fit in zip(left, ids, fits, strict=True) if fit}
        left, room = left[~fits], room - 1  # tokens that arise where text and template meet
    return Tokens([found[i] for i in range(len(texts))], None, is_cut)


def first_tokens(spec: BackboneSpec, template: str, words: Mapping[str, str]) -> np.ndarray:
    """The token that each class's word begins with after the template, int64 [classes].

    Raises BackboneError where two classes' words begin alike, or where the template's own last
    token is another once a word follows.
    """
    said = filled(template, "It", "It")
    gap = "" if template[-1:].isspace() else " "
    whole = [said, *(said + gap + word.strip() for word in words.values())]
    before, *after = tokenise(spec, whole, None, _ANY_LENGTH).ids
    n = len(before)
    by_token: dict[int, str] = {}
    for (name, word), ids in zip(words.items(), after, strict=True):
        if len(ids) <= n or not np.array_equal(ids[:n], before):
            raise BackboneError(
                f"task.template: as {spec.name} reads it, its end changes when {word!r} follows; "
                "let it end in neither a space nor half a word"
            )
        other = by_token.setdefault(int(ids[n]), name)
        if other != name:
            raise BackboneError(
                f"task.label_words: {words[other]!r} of {other!r} and {word!r} of {name!r} begin "
                f"with the same token as {spec.name} reads them, so it cannot tell them apart: "
                "say other words"
            )
    return np.array(list(by_token), dtype=np.int64)
