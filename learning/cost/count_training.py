"""What a training step costs: forward and backward of each kind of training, counted, and looked
up.

`training_architecture` answers from `training_costs.json`, else from the user's cache, else counts;
only counting imports torch. `python -m learning.cost.count_training` recounts the shipped ones.

The model is one without numbers (`learning.cost.weightless`); a step of it costs what a step of the
real one does.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learning.backbones.catalogue import BackboneSpec, config_of
from learning.cost.cost_cache import counted
from learning.cost.costs import Cost, StepCounts, TrainingArchitecture, extrapolate

if TYPE_CHECKING:
    from learning.cost.meter import Reading

Targets = (
    Sequence[str] | str | None
)  # LoRA's target modules: names, "all-linear", or the architecture's own

_SHIPPED = Path(__file__).with_name("training_costs.json")
_CLASSES = (
    2  # counts are made with a head of two classes, and any other head is added by its formula
)
_RANKS = (8, 16)  # of LoRA, that are counted


def training_architecture(
    spec: BackboneSpec,
    kind: str,
    classes: int = _CLASSES,
    rank: int = 8,
    bottleneck: int = 16,
    head: str = "linear",
    target_modules: Targets = None,
    adapters: str = "houlsby",
) -> TrainingArchitecture:
    """The counted cost of training the backbone by `kind`.

    `rank` and `target_modules` are those of lora, `bottleneck` and `adapters` those of adapter.
    Every number of a LoRA grows in a straight line with its rank (a test holds this), so the two
    ranks that are shipped stand for all.
    """
    config, size = config_of(spec), _size(kind, rank, bottleneck)
    options = peft_options(kind, rank, bottleneck, target_modules, adapters=adapters)
    if target_modules is None:
        if (
            kind == "lora"
            and rank not in _RANKS
            and _key(config, kind, _RANKS[0], head) in _shipped()
        ):
            low, high = (
                training_architecture(spec, kind, classes, shipped, head=head) for shipped in _RANKS
            )
            return extrapolate(low, high, (rank - _RANKS[0]) / (_RANKS[1] - _RANKS[0]))
        if shipped := _shipped().get(_key(config, kind, size, head, adapters)):
            return _with_classes(_from_json(shipped), classes, head)

    def count() -> dict[str, Any]:
        return dataclasses.asdict(count_training(config, kind, head=head, **options))

    fields = counted(spec.name, f"training by {kind}", [config, kind, head, options], count)
    return _with_classes(_from_json(fields), classes, head)


def _with_classes(
    counted: TrainingArchitecture, classes: int, head: str = "linear"
) -> TrainingArchitecture:
    """The same with `classes` outputs: forward, weight gradients and (unless nothing below learns)
    input gradients.
    """
    more = classes - _CLASSES
    products = 2 if (counted.kind, head) == ("head", "linear") else 3
    numbers = more * (counted.head_inputs + 1)
    flop = products * 2 * more * counted.head_inputs

    def with_outputs(step: StepCounts) -> StepCounts:
        return dataclasses.replace(step, flop=(step.flop[0] + flop, *step.flop[1:]))

    return dataclasses.replace(
        counted,
        parameters=counted.parameters + numbers,
        trainable=counted.trainable + numbers,
        plain=with_outputs(counted.plain),
        checkpointed=with_outputs(counted.checkpointed),
    )


def peft_options(
    kind: str,
    rank: int,
    bottleneck: int,
    target_modules: Targets,
    head: str = "linear",
    adapters: str = "houlsby",
) -> dict[str, Any]:
    """Of these settings, those that a kind of training has and that are not the default, as
    `learning.federated.trainable.TrainableClassifier` takes them.
    """
    options: dict[str, Any] = {} if head == "linear" else {"head": head}
    if kind == "lora":
        options["rank"] = rank
        if target_modules is not None:
            options["target_modules"] = target_modules
    if kind == "adapter":
        options |= {"bottleneck": bottleneck, "adapters": adapters}
    return options


def _size(kind: str, rank: int, bottleneck: int) -> int:
    return {"lora": rank, "adapter": bottleneck}.get(kind, 0)


def _key(
    config: Mapping[str, Any], kind: str, size: int, head: str, adapters: str = "pfeiffer"
) -> str:
    what = [config, kind, size, *([head] if head != "linear" else [])]
    what += [adapters] if kind == "adapter" and adapters != "pfeiffer" else []
    return hashlib.blake2b(json.dumps(what, sort_keys=True).encode(), digest_size=16).hexdigest()


@functools.cache
def _shipped() -> dict[str, Any]:
    return json.loads(_SHIPPED.read_text(encoding="utf-8")) if _SHIPPED.is_file() else {}


def _from_json(fields: Mapping[str, Any]) -> TrainingArchitecture:
    fields = {key: value for key, value in fields.items() if key != "name"}
    for name in ("plain", "checkpointed"):
        step: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields[name].items()
        }
        fields[name] = StepCounts(**step)
    return TrainingArchitecture(**fields)


# --- counting
# ------------------------------------------------------------------------------------------


def count_training(
    config: Mapping[str, Any], kind: str, head: str = "linear", **options: Any
) -> TrainingArchitecture:
    """Count the coefficients of `TrainingArchitecture`; `options` are those of `peft_options`."""
    from learning.cost.weightless import of_depth

    return of_depth(config, lambda cut_to: _count(cut_to, kind, head, options))


def _count(
    config: Mapping[str, Any], kind: str, head: str, options: Mapping[str, Any]
) -> TrainingArchitecture:
    from learning.cost.meter import LONG
    from learning.cost.weightless_classifier import weightless_classifier

    model, roomy = (
        weightless_classifier(config, kind, _CLASSES, positions=positions, head=head, **options)
        for positions in (None, 2 * LONG[-1])
    )
    plain = _step_counts(model, roomy)
    for one in (model, roomy):
        _checkpoint(one)
    return TrainingArchitecture(
        kind=kind,
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        head_inputs=model.head.in_features,
        plain=plain,
        checkpointed=_step_counts(model, roomy),
    )


def _step_counts(model: Any, roomy: Any) -> StepCounts:
    from learning.backbones.layers import positions_of
    from learning.cost.meter import coefficients

    def run_on(one: Any) -> Any:
        return lambda batch, tokens: [measure_step(one, batch, tokens)]

    (made,) = coefficients(run_on(model), run_on(roomy), positions_of(model))
    return StepCounts(**made)


def count_step(
    config: Mapping[str, Any],
    kind: str,
    batch: int,
    tokens: int,
    dropout: float = 0.0,
    checkpointing: bool = False,
    **options: Any,
) -> tuple[Cost, int]:
    """One forward and backward pass, without an optimiser: its cost, and the bytes saved for the
    backward pass.

    `bytes_moved` holds all traffic between operators here, the activations' too. Dropout keeps a
    mask for every tensor that it thins, which no cost in this project has.
    """
    from learning.cost.weightless_classifier import weightless_classifier

    model = weightless_classifier(config, kind, _CLASSES, dropout=dropout, **options)
    if checkpointing:
        _checkpoint(model)
    read = measure_step(model, batch, tokens)
    return Cost(float(read.flop), float(read.bytes_moved), read.peak_bytes), read.saved_bytes


def _checkpoint(model: Any) -> None:
    """Compute each layer again in the backward pass; without what transformers' own switch does to
    the embeddings.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    for layer in (
        module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)
    ):
        layer.train().gradient_checkpointing = True  # its dropouts are zero here, or meant
        vars(layer)["_gradient_checkpointing_func"] = functools.partial(
            checkpoint, use_reentrant=False
        )


def measure_step(model: Any, batch: int, tokens: int) -> Reading:
    """A forward and a backward pass; what is saved for the latter is counted in distinct new
    storages.
    """
    import torch
    import torch.nn.functional as F

    from learning.cost.meter import CostMeter, Reading, saving

    with torch.device("meta"):
        ids_BT = torch.zeros(batch, tokens, dtype=torch.long)
        mask_BT = torch.ones_like(ids_BT)
        labels_B = torch.zeros(batch, dtype=torch.long)
        meter = CostMeter()
        known = [ids_BT, mask_BT, labels_B, *model.parameters(), *model.buffers()]
        meter.ignore(known)
        model.zero_grad(set_to_none=True)
        with meter:
            with saving(known) as saved:
                loss = F.cross_entropy(model(ids_BT, mask_BT), labels_B)
            kept = sum(saved.values())
            loss.backward()
    return Reading(meter.flop, meter.bytes_moved, meter.peak_bytes, meter.operators, kept)


def main() -> None:
    """Recount the backbones and kinds in common use into training_costs.json."""
    from learning.backbones.catalogue import find

    sizes = (
        ("full", 0, ""),
        *(("lora", rank, "") for rank in _RANKS),
        ("adapter", 16, "pfeiffer"),
        ("adapter", 16, "houlsby"),
        ("bitfit", 0, ""),
        ("head", 0, ""),
    )
    counted = {}
    for backbone in ("roberta-base", "minilm", "minilm-l2", "minilm-l4", "minilm-narrow"):
        config = config_of(find(backbone))
        for (kind, size, form), head in itertools.product(sizes, ("linear", "dense")):
            name = f"{backbone}, {kind} {size}" if size else f"{backbone}, {kind}"
            name += f", {form}" if form else ""
            name += ", dense head" if head == "dense" else ""
            options = peft_options(kind, size, size, None, adapters=form)
            fields = dataclasses.asdict(count_training(config, kind, head, **options))
            counted[_key(config, kind, size, head, form)] = {"name": name, **fields}
            print(name, flush=True)
    _SHIPPED.write_text(json.dumps(counted, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
