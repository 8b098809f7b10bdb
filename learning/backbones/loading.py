"""A backbone's model in memory. Every number in it comes from its weights or from its seed, or it
is an error.

transformers fills what a checkpoint lacks with fresh random numbers, and says so in a report of its
loading. Here that report decides: a tensor that is missing, of another shape, or without a place in
the model refuses the model. What may be left over is what lies outside the bare model (the heads of
a classifier or a language model), the layers below a cut, and buffers that are computed. What may
be missing is the pooler, a summary of the last layer that nothing here reads; the model is then
used without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from inputs.files import reading
from learning.backbones.catalogue import (
    BackboneError,
    BackboneSpec,
    config_of,
    depth_of,
    directory,
    layer_of,
    weight_files,
    whole,
)
from learning.backbones.huggingface import bare_model, hf_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_model(spec: BackboneSpec) -> PreTrainedModel:
    """The bare model: float32, in eval mode, frozen, cut to its layers.

    Raises BackboneError or FileProblem for a configuration that transformers refuses, and for
    weights that do not fit it, hold NaN or infinity, or exceed this machine's memory.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = _random(spec) if spec.kind == "random" else _stored(spec)
    if model._can_set_experts_implementation():
        model.set_experts_implementation(
            "eager"
        )  # one by one: other kernels have no forward-mode derivatives
    return model.eval().requires_grad_(False)


def _blank(spec: BackboneSpec) -> PreTrainedModel:
    """The model's modules without numbers; BackboneError if this machine could not hold those."""
    config = config_of(spec)
    where = (
        f"backbone {spec.name!r}" if spec.config is not None else directory(spec) / "config.json"
    )
    if config.get("quantization_config"):
        raise BackboneError(
            f"{where}: quantised weights; give the model in float32, bfloat16 or float16"
        )
    try:
        with torch.device("meta"), reading(where, f"a configuration of {config['model_type']}"):
            made = hf_config(config)
            model = bare_model(made).from_config(made)
    except BackboneError as error:
        raise BackboneError(f"{where}: {error}") from None
    _require_memory(where, 4 * sum(p.numel() for p in model.parameters()))
    return model


def _require_memory(where: object, nbytes: int) -> None:
    most = psutil.virtual_memory().total
    if nbytes > most:
        raise BackboneError(
            f"{where}: {nbytes / 1e9:,.1f} GB of weights, and this machine has {most / 1e9:,.1f} GB"
        )


# --- from a seed
# ------------------------------------------------------------------------------------------


def _random(spec: BackboneSpec) -> PreTrainedModel:
    model = _drawn(whole(spec))
    if spec.layers is None:
        return model
    cut = _drawn(spec)  # cut as a checkpoint is cut, instead of drawing a shallower model
    state = model.state_dict()
    cut.load_state_dict({name: state[name] for name in cut.state_dict()})
    return cut


def _drawn(spec: BackboneSpec) -> PreTrainedModel:
    config = _blank(spec).config
    with torch.random.fork_rng(devices=[]), reading(f"backbone {spec.name!r}", "a configuration"):
        torch.manual_seed(spec.seed)
        return bare_model(config).from_config(config, dtype=torch.float32)


# --- from weights
# ------------------------------------------------------------------------------------------


def _stored(spec: BackboneSpec) -> PreTrainedModel:
    from safetensors.torch import load_file

    files, bare = weight_files(spec), _blank(spec)
    tensors: dict[str, Tensor] = {}
    where = f"backbone {spec.name!r}: {files[0] if len(files) == 1 else files[0].parent}"
    _require_memory(where, sum(file.stat().st_size for file in files))
    for file in files:
        with reading(file, "safetensors weights"):
            tensors |= load_file(file)
    held, wanted = (sum(t.numel() for t in some) for some in (tensors.values(), bare.parameters()))
    if wanted > 4 * held:  # seen before memory is given to it
        raise BackboneError(
            f"{where} holds {held:,} numbers, and the model of its config.json {wanted:,}"
        )
    # as tensors in memory: of a folder, transformers would follow adapters and other formats too
    with torch.random.fork_rng(devices=[]), reading(where, f"weights of {bare.config.model_type}"):
        loaded: Any = type(bare).from_pretrained(  # a pair, unlike what its signature says
            None,
            config=bare.config,
            state_dict=tensors,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, report = loaded
    mismatched = {name: shapes for name, *shapes in report["mismatched_keys"]}
    if any(map(_is_pooler, [*report["missing_keys"], *mismatched])):
        model.add_module("pooler", torch.nn.Identity())  # LayoutLM would call it all the same
    faults = [
        *_absent(report["missing_keys"], len(bare.state_dict()), tensors),
        *_unlike({name: shapes for name, shapes in mismatched.items() if not _is_pooler(name)}),
        *_left_over(spec, bare, report["unexpected_keys"]),
        *_whole_numbers(bare, tensors),
        *report["error_msgs"],
    ]
    if faults:
        raise BackboneError(
            f"{where} does not fit its config.json ({bare.config.model_type}): {'; '.join(faults)} "
            "(save_pretrained of the whole model writes both)"
        )
    if odd := [
        name for name, parameter in model.named_parameters() if not torch.isfinite(parameter).all()
    ]:
        raise BackboneError(f"{where}: NaN or infinity in {_some(odd)}")
    return model


def _absent(names: Iterable[str], of: int, tensors: Mapping[str, Any]) -> Iterator[str]:
    if all(map(_is_pooler, names)):
        return
    found = next((key for key in tensors if key.endswith(f".{min(names)}")), "")
    before = found.removesuffix(min(names))
    hint = f", for its name in the weights is {found}: take {before!r} off" if found else ""
    layers = [layer_of(name) for name in names if not _is_pooler(name)]
    if not found and (whole := min(-1 if layer is None else layer for layer in layers)) > 0:
        hint = f": `layers: {whole}` keeps those before"
    yield f"{_some(names, of)} missing{hint}"


def _unlike(shapes: Mapping[str, tuple]) -> Iterator[str]:
    if shapes:
        found, wanted = (" x ".join(map(str, shape)) for shape in shapes[min(shapes)])
        yield f"{_some(shapes)} of another shape: {found} in the weights, {wanted} in the model"


def _left_over(spec: BackboneSpec, model: PreTrainedModel, names: Iterable[str]) -> Iterator[str]:
    """Tensors without a place inside the bare model: neither of a head beside it, nor of a layer
    below the cut.
    """
    kept, uncut = depth_of(config_of(spec)), depth_of(config_of(whole(spec)))
    inside, computed = dict(model.named_children()), dict(model.named_buffers())
    odd = []
    for name in names:
        own = name.removeprefix(f"{model.base_model_prefix}.")
        layer = layer_of(own)
        is_below = layer is not None and kept <= layer < uncut
        if own.partition(".")[0] in inside and own not in computed and not is_below:
            odd.append(name)
    if odd:
        yield f"{_some(odd)} without a place in the model"


def _whole_numbers(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    own = {
        name: name.removeprefix(f"{model.base_model_prefix}.")
        for name, t in tensors.items()
        if not t.is_floating_point()
    }
    if odd := [name for name, inside in own.items() if inside in dict(model.named_parameters())]:
        yield f"{_some(odd)} of whole numbers ({tensors[min(odd)].dtype}), as a quantised model has"


def _is_pooler(name: str) -> bool:
    return name.startswith("pooler.")


def _some(names: Iterable[str], of: int | None = None) -> str:
    """How many, and the first: `2 of 39 tensors (the first pooler.dense.bias) are`."""
    names = sorted(names)
    many = f"{len(names)} of {of}" if of else f"{len(names)}"
    return f"{many} tensor{'s' * (len(names) != 1)} (the first {names[0]})"
