"""What passes without a backward pass cost: the forward pass of a classifier with its trainable part, and the same with
forward-mode derivatives, counted on meta tensors and looked up.

`forward_architecture` and `jvp_pass` answer from the user's cache, else count; only counting imports torch. Derivatives are
counted as PyTorch executes them: a product of which one factor alone has a derivative is computed three times, once with
a derivative of zeros, so a pass with derivatives from the first layer on is three forward passes, not two. (Real tensors
give the same count, and take as much longer.)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from learning import assets
from learning.catalogue import BackboneSpec, config_of, cut, depth_of, layer_of
from learning.count_split import PassCounts
from learning.count_training import _LONG, _SHORT, _TINY, _extrapolate, _size


@dataclass(frozen=True)
class ForwardArchitecture:
    """A backbone with a trainable part and a head: how many numbers each trained tensor has, and its forward pass.

    `tensors` is in the fixed order of `learning.trainable`.
    """

    tensors: dict[str, int]
    ahead: PassCounts

    def nbytes(self, names: Sequence[str] | None = None) -> int:
        """Bytes of these trained tensors, by default of all, in float32: what crosses the wire, before any codec."""
        return 4 * sum(self.tensors.values() if names is None else (self.tensors[name] for name in names))


def forward_architecture(
    spec: BackboneSpec, kind: str, classes: int = 2, rank: int = 8, bottleneck: int = 16
) -> ForwardArchitecture:
    """The counted forward pass of the backbone with a trainable part of `kind` and a head; nothing is kept."""
    config, size = config_of(spec), _size(kind, rank, bottleneck)
    made = _cached([config, kind, size, classes, "tensors"], lambda: _count_forward(config, kind, size, classes))
    return ForwardArchitecture(made["tensors"], _passes(made["ahead"]))


def jvp_pass(
    spec: BackboneSpec, kind: str, names: Sequence[str], classes: int = 2, rank: int = 8, bottleneck: int = 16
) -> PassCounts:
    """The counted forward pass that carries derivatives with respect to the named tensors.

    Derivatives begin in the first layer that has one of these; what the others add in later layers, where all is carried
    anyway, is left out (in LoRA below 1e-4 of a pass). The layers before cost a forward pass.
    """
    config, size = config_of(spec), _size(kind, rank, bottleneck)
    depth, below = depth_of(config), [layer_of(name) for name in names if not name.startswith("head.")]
    if not below:  # the head's own derivatives are a product of [D] and [D, C]
        return forward_architecture(spec, kind, classes, rank, bottleneck).ahead
    first = 0 if None in below else min(below)
    # the head and the first of these layers, moved to the bottom of a model of the layers that carry derivatives
    start = [re.sub(r"\.\d+\.", ".0.", name, count=1) for name in names if layer_of(name) in (None, first)]
    carried = _cached_pass(config, kind, size, classes, depth - first, start)
    two, three = (_cached_pass(config, kind, size, classes, layers, []) for layers in (2, 3))
    return dataclasses.replace(
        carried,
        flop=tuple(c + first * (b - a) for c, a, b in zip(carried.flop, two.flop, three.flop, strict=True)),
        bytes_moved=carried.bytes_moved + first * (three.bytes_moved - two.bytes_moved),
    )


def _cached_pass(
    config: Mapping[str, Any], kind: str, size: int, classes: int, layers: int, names: Sequence[str]
) -> PassCounts:
    what = [cut(config, layers), kind, size, classes, sorted(names)]
    return _passes(_cached(what, lambda: _at_depth(config, kind, size, classes, layers, names)))


def _cached(what: Any, count: Callable[[], Any]) -> dict[str, Any]:
    """The fields of what `count` gives, from the user's cache where they are there."""
    key = hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()
    cached = assets.cache_dir() / "costs" / f"forward-{key}.json"
    if not cached.is_file():
        counted = dataclasses.asdict(count())
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = cached.with_suffix(".tmp")
        fresh.write_text(json.dumps(counted))
        fresh.replace(cached)
    return json.loads(cached.read_text())


def _passes(fields: Mapping[str, Any]) -> PassCounts:
    return PassCounts(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


# --- counting --------------------------------------------------------------------------------------------------------


def _count_forward(config: Mapping[str, Any], kind: str, size: int, classes: int) -> ForwardArchitecture:
    model = _model(config, kind, size, classes)
    tensors = {name: parameter.numel() for name, parameter in model.trainable_parameters().items()}
    return ForwardArchitecture(tensors, _at_depth(config, kind, size, classes, depth_of(config), ()))


def _at_depth(
    config: Mapping[str, Any], kind: str, size: int, classes: int, layers: int, names: Sequence[str]
) -> PassCounts:
    """The pass of a cut to so many layers; more than three follow from two and three, since each adds the same."""
    if layers <= 3:
        return _count(cut(config, layers), kind, size, classes, names)
    two, three = (_count(cut(config, n), kind, size, classes, names) for n in (2, 3))
    return _extrapolate(two, three, layers - 2)


def _count(config: Mapping[str, Any], kind: str, size: int, classes: int, names: Sequence[str] = ()) -> PassCounts:
    from learning.count import _quadratic

    model = _model({**config, "max_position_embeddings": 2 * _LONG[-1]}, kind, size, classes)
    run, many = functools.partial(_run, model, names), 2**20  # see learning.count_training._step_counts
    one, two = (run(batch, _TINY[0]) for batch in (1, 2))
    return PassCounts(
        flop=_quadratic(_TINY, [float(run(1, n)[0]) for n in _TINY]),
        peak_feed_forward=_quadratic(_SHORT, [float(round(run(many, n)[1] / many)) for n in _SHORT]),
        peak_attention=_quadratic(_LONG, [float(round(run(many, n)[1] / many)) for n in _LONG]),
        bytes_moved=float(2 * one[2] - two[2]),  # what two sequences move beyond one is the sequence's own
    )


def _model(config: Mapping[str, Any], kind: str, size: int, classes: int):
    """The trainable classifier of an architecture on `meta`."""
    import torch

    from learning.huggingface import bare_model, hf_config
    from learning.trainable import TrainableClassifier

    made = hf_config(config)
    spec = BackboneSpec("counted", "shape", "counted", config=dict(config))
    with torch.device("meta"):
        bare = bare_model(made).from_config(made, attn_implementation="eager")
        sizes = {"rank": size} if kind == "lora" else {"bottleneck": size} if kind == "adapter" else {}
        model = TrainableClassifier(spec, kind, classes, backbone=bare, **sizes)
    model.backbone.register_forward_pre_hook(_with_whole_mask, with_kwargs=True)
    return model


def _with_whole_mask(module, args, inputs):
    """The mask as attention adds it, [B, 1, T, T]: making it of [B, T] looks at values, of which there are none here."""
    import torch

    batch, tokens = inputs["attention_mask"].shape
    return args, {**inputs, "attention_mask": torch.zeros(batch, 1, tokens, tokens, device="meta")}


def _run(model, names: Sequence[str], batch: int, tokens: int) -> tuple[int, int, int]:
    """FLOP, peak of live bytes and bytes moved of one pass, with derivatives along the named tensors."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from learning.count import MemoryCounter
    from learning.forward_gradient import batch_loss

    with torch.device("meta"):
        ids_BT = torch.zeros(batch, tokens, dtype=torch.long)
        mask_BT, labels_B = torch.ones_like(ids_BT), torch.zeros(batch, dtype=torch.long)
        loss = batch_loss(model, ids_BT, mask_BT, labels_B)
        state = {name: parameter.detach() for name, parameter in model.trainable_parameters().items()}
        own = {name: state[name] for name in names}
        v, memory = {name: torch.empty_like(tensor) for name, tensor in own.items()}, MemoryCounter()
        memory.ignore([ids_BT, mask_BT, labels_B, *model.parameters(), *model.buffers(), *v.values()])
        with torch.no_grad(), FlopCounterMode(display=False) as flop, memory:
            if own:
                torch.func.jvp(lambda part: loss({**state, **part}), (own,), (v,))
            else:
                loss(state)
    return flop.get_total_flops(), memory.peak_bytes, memory.bytes_moved
