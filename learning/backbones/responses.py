"""A prompt and what is to be said after it, as a backbone's tokens: next-token tasks.

A template says how the two stand: the model's own chat template (`chat`), or a text with `{prompt}`
and `{response}` in it. Both sides are read on their own and put side by side, so that no token
reaches over the place where the response begins. What follows the response in the template counts
as the response's, up to the model's end of a text; where nothing follows, that is put there. Of a
text that would be longer than `max_tokens` the response keeps half of them at least, and the prompt
loses words at its end.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from inputs.files import read_json, reading, regular_file
from learning.backbones.catalogue import BackboneError, BackboneSpec, config_of, directory
from learning.backbones.tokens import Tokens, shortened, tokenise, tokenizer_of

PROMPT, RESPONSE = "{prompt}", "{response}"
CHAT = "chat"
PLAIN = "{prompt}\n{response}"
"""For a model without a chat template."""
_ANY_LENGTH = 1 << 20
_MOST_BYTES = 1 << 20  # of a chat template


def why_unfit(template: str) -> str | None:
    """What is wrong with a template for prompts and responses."""
    if template == CHAT:
        return None
    for place in (PROMPT, RESPONSE):
        if template.count(place) != 1:
            return (
                f"of a language-modelling task is `chat`, or a text with {PROMPT} and {RESPONSE} "
                f"once each, such as {json.dumps(PLAIN)}; {place} stands there "
                f"{template.count(place)} times"
            )
    if template.index(PROMPT) > template.index(RESPONSE):
        return f"has {RESPONSE} before {PROMPT}: a model reads from left to right"
    return None


def responses(
    spec: BackboneSpec,
    template: str | None,
    prompts: Sequence[str],
    said: Sequence[str],
    max_tokens: int = 64,
) -> Tokens:
    """Prompts with responses as the backbone's tokens, `max_tokens` at most; segment 1 is the
    response, whose tokens are to be said, segment 0 what comes before it.

    A blank prompt is left out with what the template has before the response, which is then plain
    text that begins with the tokenizer's first token, or its own. `template` None is `chat` where
    the tokenizer has a chat template, else "{prompt}\\n{response}". Raises BackboneError where the
    template leaves no room for a prompt, and what `tokenise` raises.
    """
    head, tail = sides(spec, template)
    ends = end_of_text(spec)
    replies = [_alone(spec, text + tail, ends) for text in said]
    ids: list[np.ndarray] = []
    segments: list[np.ndarray] = []
    is_cut: list[bool] = []
    for prompt, reply in zip(prompts, replies, strict=True):
        before, cut = _before(spec, head, prompt, len(reply), max_tokens)
        kept = reply[: max_tokens - len(before)]
        ids.append(np.concatenate([before, kept]).astype(np.int32))
        segments.append(np.repeat(np.array([0, 1], np.int32), [len(before), len(kept)]))
        is_cut.append(cut or len(kept) < len(reply))
    return Tokens(ids, segments, is_cut)


def sides(spec: BackboneSpec, template: str | None) -> tuple[str, str]:
    """What stands before a response, with `{prompt}` in it, and after it."""
    if template is None:
        template = CHAT if chat_template(spec) else PLAIN
    if template == CHAT:
        return _chat_sides(spec)
    head, tail = template.split(RESPONSE)
    return head, _to_the_end(tail, _word(_tokenizer_config(spec).get("eos_token")))


def end_of_text(spec: BackboneSpec) -> int | None:
    """The token that ends what a model says; None where neither tokenizer nor configuration names
    one.
    """
    return _special(spec, "eos_token")


def _special(spec: BackboneSpec, name: str) -> int | None:
    """A special token's id, by the tokenizer's configuration, else by the model's."""
    if spec.kind in ("random", "shape"):
        return 1
    if word := _word(_tokenizer_config(spec).get(name)):
        tokenizer = tokenizer_of(spec)
        find = getattr(tokenizer, "token_to_id", None) or tokenizer.convert_tokens_to_ids
        if (found := find(word)) is not None:
            return found
    found = config_of(spec).get(f"{name}_id")
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, int) else None


def chat_template(spec: BackboneSpec) -> str | None:
    """The chat template that lies beside the backbone's tokenizer, if any does."""
    if spec.kind in ("random", "shape"):
        return None
    folder = directory(spec)
    if (file := folder / "chat_template.jinja").is_file():
        with reading(regular_file(file, _MOST_BYTES), "a chat template"):
            return file.read_text(encoding="utf-8")
    found = _tokenizer_config(spec).get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {one.get("name"): one.get("template") for one in found}.get("default")
    return found if isinstance(found, str) else None


def _chat_sides(spec: BackboneSpec) -> tuple[str, str]:
    """The two sides of one question and answer in the model's own chat template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = chat_template(spec)
    if template is None:
        raise BackboneError(
            f"task.template: {spec.name} has no chat template beside its tokenizer; say how prompt "
            f"and response stand, as {json.dumps(PLAIN)}"
        )
    config = _tokenizer_config(spec)
    special: dict[str, Any] = {
        key: _word(config.get(key)) for key in ("bos_token", "eos_token", "unk_token")
    }
    mark = "\u0001"  # stands in nobody's text, and no template takes it away
    talk = [{"role": "user", "content": mark}, {"role": "assistant", "content": mark + mark}]
    with reading(f"backbone {spec.name!r}", "a chat template"):  # in transformers' sandbox
        asked, whole = (
            render_jinja_template(
                [said],
                chat_template=template,
                add_generation_prompt=is_asked,
                **special,
            )[0][0]
            for said, is_asked in ((talk[:1], True), (talk, False))
        )
    if asked.count(mark) != 1 or whole.count(mark + mark) != 1:
        raise BackboneError(
            f"task.template: the chat template of {spec.name} does not keep what is said in it as "
            "it is; say how prompt and response stand"
        )
    tail = _to_the_end(whole.split(mark + mark)[1], special["eos_token"])
    return asked.replace(mark, PROMPT), tail


def _to_the_end(tail: str, end: str) -> str:
    """What follows a response as far as the token that ends a text: what a model says ends
    there.
    """
    return tail[: tail.index(end) + len(end)] if end and end in tail else tail


def _word(token: Any) -> str:
    """A special token of a tokenizer's configuration, as text."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


@functools.lru_cache(maxsize=8)
def _tokenizer_config(spec: BackboneSpec) -> dict[str, Any]:
    if spec.kind in ("random", "shape"):
        return {}
    file = directory(spec) / "tokenizer_config.json"
    found = read_json(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}


def _before(
    spec: BackboneSpec, head: str, prompt: str, reply: int, max_tokens: int
) -> tuple[np.ndarray, bool]:
    """The tokens before a reply of so many, and whether the prompt has lost words."""
    room = max_tokens - min(reply, max_tokens - max_tokens // 2)
    if not prompt.strip():
        return _first_token(spec), False
    whole = _headed(spec, head.replace(PROMPT, prompt))
    if len(whole) <= room:
        return whole, False
    around = len(_headed(spec, head.replace(PROMPT, "")))
    for words in range(room - around, 0, -1):  # tokens that arise where both meet
        (cut,) = shortened(spec, [prompt], words)
        ids = _headed(spec, head.replace(PROMPT, cut))
        if len(ids) <= room:
            return ids, True
    raise BackboneError(
        f"max_tokens: {max_tokens} leaves no room for a prompt beside the {around} tokens that the "
        f"template takes as {spec.name} reads it, and half of them for the response"
    )


def _headed(spec: BackboneSpec, text: str) -> np.ndarray:
    """The tokens of what stands before a response. A chat template may say the token that a text
    begins with, which a tokenizer puts there as well: it stands there once.
    """
    ids = tokenise(spec, [text], None, _ANY_LENGTH).ids[0]
    first = _special(spec, "bos_token")
    return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == first else ids


def _first_token(spec: BackboneSpec) -> np.ndarray:
    """What a plain text begins with: after it the first word is to be said."""
    for name in ("bos_token", "eos_token"):
        if (found := _special(spec, name)) is not None:
            return np.array([found], np.int32)
    raise BackboneError(
        f"backbone {spec.name!r}: neither its tokenizer nor its config.json names a token that a "
        "text begins with (bos_token), which plain text needs: give the data a `prompt`"
    )


def _alone(spec: BackboneSpec, text: str, ends: int | None) -> np.ndarray:
    """A reply's tokens, without what a tokenizer puts around a text, and its end."""
    if spec.kind in ("random", "shape"):
        ids = tokenise(spec, [text], None, _ANY_LENGTH).ids[0][1:]
    else:
        with reading(directory(spec), "a tokenizer of these texts"):
            tokenizer = tokenizer_of(spec)
            if hasattr(tokenizer, "encode_batch"):
                tokenizer.no_padding()
                tokenizer.no_truncation()
                found = tokenizer.encode(text, add_special_tokens=False).ids
            else:  # one of transformers' own, in Python
                found = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = np.array(found, dtype=np.int64)
    if ends is not None and (not len(ids) or ids[-1] != ends):
        ids = np.append(ids, ends)
    return ids.astype(np.int32)


def said(spec: BackboneSpec, ids: Sequence[int] | np.ndarray) -> str:
    """Tokens as the text that a person reads, special ones left out."""
    if spec.kind in ("random", "shape"):
        return " ".join(f"<{int(one)}>" for one in ids)
    with reading(directory(spec), "a tokenizer of these texts"):
        text = tokenizer_of(spec).decode([int(one) for one in ids], skip_special_tokens=True)
    return re.sub(r"\s+", " ", text).strip()
