"""What a training step costs: forward and backward of each kind of training, counted on fake tensors, and looked up.

`training_architecture` answers from `training_costs.json`, else from the user's cache, else counts; only counting imports
torch. `python -m learning.count_training` recounts the shipped ones.

The model is built on `meta`, where peft can put its layers in, and then given fake tensors, which the masks need. Memory
and FLOP are counted in separate passes: torch's FLOP counter keeps recomputed activations alive.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learning import assets
from learning.catalogue import BackboneSpec, config_of, cut, depth_of
from learning.cost import Cost, StepCounts, TrainingArchitecture

_SHIPPED = Path(__file__).with_name("training_costs.json")
_CLASSES = 2  # counts are made with a head of two classes, and any other head is added by its formula
_RANKS = (8, 16)  # of LoRA, that are counted
_TINY, _SHORT, _LONG = (4, 8, 12), (32, 48, 64), (1024, 1280, 1536)  # tokens at which coefficients are fitted
_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "activation_dropout",
)


def training_architecture(
    spec: BackboneSpec, kind: str, classes: int = _CLASSES, rank: int = 8, bottleneck: int = 16, head: str = "linear"
) -> TrainingArchitecture:
    """The counted cost of training the backbone by `kind`; `rank` is that of lora, `bottleneck` that of adapter.

    Every number of a LoRA grows in a straight line with its rank (a test holds this), so two ranks are counted for all.
    """
    if kind == "lora" and rank not in _RANKS:
        low, high = (training_architecture(spec, kind, classes, counted, bottleneck, head) for counted in _RANKS)
        return _extrapolate(low, high, (rank - _RANKS[0]) / (_RANKS[1] - _RANKS[0]))
    config, size = config_of(spec), _size(kind, rank, bottleneck)
    key = _key(config, kind, size, head)
    if key in _shipped():
        return _with_classes(_from_json(_shipped()[key]), classes, head)
    cached = assets.cache_dir() / "costs" / f"training-{key}.json"
    if not cached.is_file():
        counted = dataclasses.asdict(count_training(config, kind, size, head))
        cached.parent.mkdir(parents=True, exist_ok=True)
        fresh = cached.with_suffix(".tmp")
        fresh.write_text(json.dumps(counted))
        fresh.replace(cached)
    return _with_classes(_from_json(json.loads(cached.read_text())), classes, head)


def _with_classes(counted: TrainingArchitecture, classes: int, head: str = "linear") -> TrainingArchitecture:
    """The same with `classes` outputs: forward, weight gradients and (unless nothing below learns) input gradients."""
    more, products = classes - _CLASSES, 2 if (counted.kind, head) == ("head", "linear") else 3
    numbers, flop = more * (counted.head_inputs + 1), products * 2 * more * counted.head_inputs

    def with_outputs(step: StepCounts) -> StepCounts:
        return dataclasses.replace(step, flop=(step.flop[0] + flop, *step.flop[1:]))

    return dataclasses.replace(
        counted,
        parameters=counted.parameters + numbers,
        trainable=counted.trainable + numbers,
        plain=with_outputs(counted.plain),
        checkpointed=with_outputs(counted.checkpointed),
    )


def _size(kind: str, rank: int, bottleneck: int) -> int:
    return {"lora": rank, "adapter": bottleneck}.get(kind, 0)


def _key(config: Mapping[str, Any], kind: str, size: int, head: str = "linear") -> str:
    what = [config, kind, size, *([head] if head != "linear" else [])]
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def _shipped() -> dict[str, Any]:
    return json.loads(_SHIPPED.read_text(encoding="utf-8")) if _SHIPPED.is_file() else {}


def _from_json(fields: Mapping[str, Any]) -> TrainingArchitecture:
    fields = {key: value for key, value in fields.items() if key != "name"}
    for name in ("plain", "checkpointed"):
        fields[name] = StepCounts(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields[name].items()})
    return TrainingArchitecture(**fields)


# --- counting --------------------------------------------------------------------------------------------------------


def count_training(config: Mapping[str, Any], kind: str, size: int = 0, head: str = "linear") -> TrainingArchitecture:
    """Count the coefficients of `TrainingArchitecture`; `size` is the rank of lora or the bottleneck of adapter.

    Every layer beyond the second adds the same (a test holds this), so a deep model follows from its cuts to 2 and 3.
    """
    depth = depth_of(config)
    if depth <= 3:
        return _count(config, kind, size, head)
    two, three = (_count(cut(config, layers), kind, size, head) for layers in (2, 3))
    return _extrapolate(two, three, depth - 2)


def _extrapolate(two: Any, three: Any, steps: float) -> Any:
    """Every number of `two` plus `steps` times what it grows by from `two` to `three`; whole numbers stay whole."""
    if dataclasses.is_dataclass(two):
        fields = [field.name for field in dataclasses.fields(two)]
        return type(two)(**{f: _extrapolate(getattr(two, f), getattr(three, f), steps) for f in fields})
    if isinstance(two, tuple):
        return tuple(_extrapolate(a, b, steps) for a, b in zip(two, three, strict=True))
    if isinstance(two, str):
        return two
    return round(two + steps * (three - two)) if isinstance(two, int) else two + steps * (three - two)


def _count(config: Mapping[str, Any], kind: str, size: int, head: str) -> TrainingArchitecture:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = _build(config, kind, size, 0.0, head)
        roomy = _build({**config, "max_position_embeddings": 2 * _LONG[-1]}, kind, size, 0.0, head)
        plain = _step_counts(model, roomy)
        for one in (model, roomy):
            _checkpoint(one)
        checkpointed = _step_counts(model, roomy)
    return TrainingArchitecture(
        kind=kind,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        head_inputs=model.head.in_features,
        plain=plain,
        checkpointed=checkpointed,
    )


def count_step(
    config: Mapping[str, Any],
    kind: str,
    size: int,
    batch: int,
    tokens: int,
    dropout: float = 0.0,
    checkpointing: bool = False,
) -> tuple[Cost, int]:
    """One forward and backward pass, without an optimiser: its cost, and the bytes saved for the backward pass.

    `bytes_moved` holds all traffic between operators here, the activations' too. Dropout keeps a mask for every tensor
    that it thins, which training in this project never does (see `learning.trainable`); other tools do.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = _build(config, kind, size, dropout)
        if checkpointing:
            _checkpoint(model)
        saved, peak, moved = _memory(model, batch, tokens)
        return Cost(float(_flop(model, batch, tokens)), float(moved), peak), saved


def _build(config: Mapping[str, Any], kind: str, size: int, dropout: float, head: str = "linear"):
    """The trainable classifier of an architecture, on fake tensors; call it under the FakeTensorMode they belong to."""
    import torch
    from torch import nn
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from learning.huggingface import bare_model, hf_config
    from learning.trainable import TrainableClassifier

    spec = BackboneSpec("counted", "shape", "counted", config=config)
    made = hf_config(config)
    for name in _DROPOUTS:
        if hasattr(made, name):
            setattr(made, name, dropout)
    if hasattr(made, "layerdrop"):
        made.layerdrop = 0.0
    with unset_fake_temporarily(), torch.device("meta"):
        bare = bare_model(made).from_config(made, attn_implementation="eager")
        sizes = {"rank": size} if kind == "lora" else {"bottleneck": size} if kind == "adapter" else {}
        model = TrainableClassifier(spec, kind, _CLASSES, backbone=bare, head=head, **sizes)
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                fake = torch.empty(p.shape, dtype=p.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        for name, b in module._buffers.items():
            if b is not None:
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
    return model.train(dropout > 0)


def _checkpoint(model) -> None:
    """Compute each layer again in the backward pass; without what transformers' own switch does to the embeddings."""
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)):
        layer.train().gradient_checkpointing = True  # its dropouts are zero here, or meant
        layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)


def _step_counts(model, roomy) -> StepCounts:
    """FLOP and saved bytes are polynomials; the peak has a feed-forward regime (short) and an attention regime (long).

    The latter is read far beyond the lengths in use, where it is alone, on a model with `roomy` positions.
    """
    from learning.count import _quadratic

    many = 2**20  # so many that what does not grow with the batch is lost in rounding; fake tensors cost nothing

    def each(which: int, lengths: tuple[int, ...], model) -> list[float]:
        return [float(round(_memory(model, many, n)[which] / many)) for n in lengths]

    moved = [_memory(model, batch, _TINY[0])[2] for batch in (1, 2)]
    return StepCounts(
        flop=_quadratic(_TINY, [float(_flop(model, 1, n)) for n in _TINY]),
        saved=_quadratic(_TINY, each(0, _TINY, model)),
        peak_feed_forward=_quadratic(_SHORT, each(1, _SHORT, model)),
        peak_attention=_quadratic(_LONG, each(1, _LONG, roomy)),
        bytes_moved=float(2 * moved[0] - moved[1]),  # what two sequences move beyond one is the sequence's own
    )


def _flop(model, batch: int, tokens: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as flop:
        _loss(model, *_inputs(batch, tokens)).backward()
    return flop.get_total_flops()


def _memory(model, batch: int, tokens: int) -> tuple[int, int, int]:
    """Bytes saved for the backward pass in distinct new storages, peak of live bytes, bytes moved between operators."""
    import torch

    from learning.count import MemoryCounter

    inputs, memory = _inputs(batch, tokens), MemoryCounter()
    known = [*inputs, *model.parameters(), *model.buffers()]
    memory.ignore(known)
    weights, saved = {tensor.untyped_storage()._cdata for tensor in known}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    model.zero_grad(set_to_none=True)
    with memory:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = _loss(model, *inputs)
        kept = sum(saved.values())
        loss.backward()
    return kept, memory.peak_bytes, memory.bytes_moved


def _inputs(batch: int, tokens: int):
    import torch

    ids_BT = torch.zeros(batch, tokens, dtype=torch.long)
    return ids_BT, torch.ones_like(ids_BT), torch.zeros(batch, dtype=torch.long)


def _loss(model, ids_BT, mask_BT, labels_B):
    import torch.nn.functional as F

    return F.cross_entropy(model(ids_BT, mask_BT), labels_B)


def main() -> None:
    """Recount the backbones and kinds in common use into training_costs.json."""
    from learning.catalogue import find

    sizes = (("full", 0), *(("lora", rank) for rank in _RANKS), ("adapter", 16), ("bitfit", 0), ("head", 0))
    counted = {}
    for backbone in ("roberta-base", "minilm", "minilm-l2", "minilm-l4", "minilm-narrow"):
        config = config_of(find(backbone))
        for (kind, size), head in itertools.product(sizes, ("linear", "dense")):
            name = f"{backbone}, {kind} {size}" if size else f"{backbone}, {kind}"
            name += ", dense head" if head == "dense" else ""
            fields = dataclasses.asdict(count_training(config, kind, size, head))
            counted[_key(config, kind, size, head)] = {"name": name, **fields}
            print(name, flush=True)
    _SHIPPED.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
