"""A backbone with a head, of which a part can be trained by gradients: what an on-device PEFT
baseline trains.

Five kinds: `full` (every weight), `lora` (low-rank updates of linear maps, by the `peft` library),
`adapter` (bottlenecks at the ends of every layer's attention and feed-forward blocks, or of what
stands in their places), `bitfit` (every bias) and `head` (nothing but the head, which every other
kind trains too).
Attention and mixtures of experts are eager, so that forward-mode derivatives exist
(pytorch/pytorch#128971). Nothing is dropped out but within `learning.federated.dropout`, in
training: any other pass is a function of its inputs and of the state alone.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from learning.backbones.anatomy import anatomy
from learning.backbones.backbone import _read
from learning.backbones.catalogue import BackboneError, BackboneSpec, layer_of
from learning.backbones.huggingface import has_segments
from learning.backbones.loading import load_model
from learning.host_device import CPU, host_device

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

KINDS = ("full", "lora", "adapter", "bitfit", "head")
HEADS = ("linear", "dense")
ADAPTERS = ("houlsby", "pfeiffer")
HEAD_DROPOUT = 0.1  # of BERT's and RoBERTa's heads; training sets its own rate
# what query and value are called where peft's own table has no entry
_ALSO_QUERY_VALUE = {
    "albert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "mobilebert": ["query", "value"],
    "modernbert": ["Wqkv"],
    "mpnet": ["q", "v"],
    "phi3": ["qkv_proj"],
}


class TrainableClassifier(nn.Module):
    """A frozen backbone, its trainable part of one of `KINDS`, a readout and a head to `classes`
    logits.

    The trainable part is a dict of named tensors in a fixed order: the head, what lies outside the
    layers, then layer by layer; so the names of a backbone cut to k layers are the first names of
    the uncut one. One object serves many devices by swapping these states. Every new tensor starts
    from a generator of its own, named by (seed, name): layer i starts equal at every depth.

    `rank` and `alpha` are those of LoRA (the update is alpha / rank x B A), `target_modules` the
    linear maps it is put beside: names, "all-linear", or None for those that peft has for the
    architecture (in most, query and value). `bottleneck` is the width of the adapters, which are
    two a layer (`houlsby`, as FedPETuning's) or one (`pfeiffer`). The head is one linear map, or
    RoBERTa's own (`dense`: a square map and tanh before it; Hugging Face transformers,
    RobertaClassificationHead), which is most of what BitFit and LoRA train and send.
    With a `lora_dropout` other than 0 LoRA's inputs are dropped out too, in training.
    `backbone` takes the place of the spec's own weights (used to count costs without any). Raises
    ValueError for an unknown kind, head or form of adapters, and BackboneError for a kind that
    finds nothing to train (bitfit in a Llama has no biases) and for target modules that are unknown
    or not there.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        kind: str,
        classes: int,
        readout: str = "mean",
        rank: int = 8,
        alpha: float = 8,
        bottleneck: int = 16,
        seed: int = 0,
        backbone: PreTrainedModel | None = None,
        head: str = "linear",
        target_modules: Sequence[str] | str | None = None,
        adapters: str = "houlsby",
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(
                f"{kind!r} is not a kind of training; choose one of {', '.join(KINDS)}"
            )
        if head not in HEADS:
            raise ValueError(f"{head!r} is not a head; choose one of {', '.join(HEADS)}")
        if adapters not in ADAPTERS:
            raise ValueError(f"adapters {adapters!r} are not one of {', '.join(ADAPTERS)}")
        self.spec = spec
        self.kind = kind
        self.readout = readout
        self.classes = classes
        with torch.random.fork_rng(
            devices=[]
        ):  # building draws values from the global stream; `_start` replaces them
            self.backbone = load_model(spec) if backbone is None else backbone
            self.backbone.set_attn_implementation("eager")
            if getattr(self.backbone, "pooler", None) is not None:
                # BERT's own summary of a text, which no readout uses; LayoutLM would call None
                self.backbone.add_module("pooler", nn.Identity())
            for module in self.backbone.modules():
                if "layerdrop" in vars(module):
                    vars(module)["layerdrop"] = 0.0  # OPT's: a layer is trained whole or not at all
            self.backbone.requires_grad_(kind == "full")
            self.lora: LoraConfig | None = None
            if kind == "lora":
                sizes = (rank, alpha, target_modules, lora_dropout)
                self.lora = _add_lora(self.backbone, spec.name, *sizes)
            else:
                _add_trainable(self.backbone, kind, bottleneck, adapters)
            config = self.backbone.config
            width = (
                getattr(config, "word_embed_proj_dim", None) or config.hidden_size
            )  # OPT-350M leaves narrower
            device = next(self.backbone.parameters()).device
            self.head = self._new_head(head, width, device)
        if kind == "bitfit" and not any(
            parameter.requires_grad for parameter in self.backbone.parameters()
        ):
            raise BackboneError(
                f"backbone {spec.name!r} ({config.model_type}) has no biases, so bitfit has "
                "nothing to train; "
                "choose another kind"
            )
        _start(self, seed)
        self.dropout = nn.Dropout(HEAD_DROPOUT)
        self.host = host_device() if backbone is None else CPU
        if backbone is None:
            self.host.place(self)
        self._named = dict(
            sorted(((n, p) for n, p in self.named_parameters() if p.requires_grad), key=_place)
        )
        self.eval()

    def forward(self, ids_BT: Tensor, mask_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Logits [B, C] of right-padded token ids [B, T] with a mask of real tokens [B, T], on the
        model's device.
        """
        ids_BT, mask_BT = ids_BT.to(self.device), mask_BT.to(self.device)
        inputs: dict[str, Tensor | bool] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        if segments_BT is not None and self.embeds_segments:
            inputs["token_type_ids"] = segments_BT.to(self.device)
        if hasattr(self.backbone.config, "use_cache"):
            inputs["use_cache"] = False
        h_BTD = self.backbone(**inputs).last_hidden_state
        return self.read_off(h_BTD, mask_BT, segments_BT)

    @property
    def embeds_segments(self) -> bool:
        """Whether the segments of tokens are embedded, as those of a pair of texts."""
        return has_segments(self.backbone.config)

    def read_off(self, h_BTD: Tensor, mask_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Logits [B, C] of texts whose tokens have these last states."""
        return self.head(self.dropout(_read(h_BTD, mask_BT, self.readout)))

    def _new_head(self, head: str, width: int, device: torch.device) -> Any:
        if not self.classes:
            return NoHead(width)
        if head == "dense":
            return DenseHead(width, self.classes, device)
        return nn.Linear(width, self.classes, device=device)

    def targets(
        self, ids_BT: Tensor, mask_BT: Tensor, segments_BT: Tensor | None, labels_B: Tensor
    ) -> Tensor:
        """What the outputs of a batch are held against by `losses.loss_of`: the labels."""
        return labels_B

    def texts_of(self, ids_BT: Tensor, mask_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Which text of the batch each output is of: [B]."""
        return torch.arange(len(ids_BT))

    def twin(self) -> Self:
        """Another one, for another thread: what is frozen is shared, what is trained its own."""
        shared = {id(p): p for p in self.parameters() if not p.requires_grad}
        return copy.deepcopy(self, shared)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(iter(self._named.values())).device

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """The live trainable parameters in the fixed order; their names are those of
        `named_parameters`.
        """
        return dict(self._named)

    def trainable(self) -> dict[str, Tensor]:
        """A copy of the trainable part, head included, in the fixed order, in the CPU's memory."""
        return {
            name: parameter.detach().to("cpu", copy=True) for name, parameter in self._named.items()
        }

    def load_trainable(self, state: Mapping[str, Tensor]) -> None:
        """Take a state as `trainable` gives it; ValueError if its names or shapes are not this
        model's.
        """
        if state.keys() != self._named.keys() or any(
            state[name].shape != parameter.shape for name, parameter in self._named.items()
        ):
            raise self._not_mine(state)
        with torch.no_grad():
            torch._foreach_copy_(list(self._named.values()), [state[name] for name in self._named])

    def _not_mine(self, state: Mapping[str, Tensor]) -> ValueError:
        odd = (n for n in {*state, *self._named} if _shape(state, n) != _shape(self._named, n))
        name = min(odd)
        return ValueError(
            f"this state is not one of {self.spec.name!r} trained by {self.kind}: {name} is "
            f"{_shape(state, name)} in the state and {_shape(self._named, name)} in the model"
        )

    @property
    def trainable_bytes(self) -> int:
        """Bytes of the trainable part: what a device sends and receives, before any codec."""
        return sum(p.numel() * p.element_size() for p in self._named.values())


class NoHead(nn.Module):
    """In the place of a head where what is counted has none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_features = width

    def forward(self, h_BD: Tensor) -> Tensor:
        """[B, D] to [B, 0]."""
        return h_BD[..., :0]


class DenseHead(nn.Module):
    """RoBERTa's classification head: a square map, tanh, a linear map; in training with dropout
    before either map, of which whoever calls it does the first.
    """

    def __init__(self, width: int, classes: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.in_features = width
        self.dense = nn.Linear(width, width, device=device)
        self.dropout = nn.Dropout(HEAD_DROPOUT)
        self.out_proj = nn.Linear(width, classes, device=device)

    def forward(self, h_BD: Tensor) -> Tensor:
        """[B, D] to [B, C]."""
        return self.out_proj(self.dropout(torch.tanh(self.dense(h_BD))))


class Adapter(nn.Module):
    """A bottleneck with a residual, h + up(f(down(h))): f is GELU by its tanh in the form of
    Houlsby et al. (2019), as in their code and in OpenDelta, and ReLU in that of Pfeiffer et al.
    (2021).
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        device: torch.device | None = None,
        form: str = "houlsby",
    ) -> None:
        super().__init__()
        self.form = form
        self.down = nn.Linear(width, bottleneck, device=device)
        self.up = nn.Linear(bottleneck, width, device=device)

    def forward(self, h_BTD: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        z_BTR = self.down(h_BTD)
        is_houlsby = self.form == "houlsby"
        return h_BTD + self.up(F.gelu(z_BTR, approximate="tanh") if is_houlsby else z_BTR.relu())


def _add_lora(
    backbone: PreTrainedModel,
    name: str,
    rank: int,
    alpha: float,
    target_modules: Sequence[str] | str | None,
    dropout: float,
) -> LoraConfig:
    """Put LoRA beside the target modules, in place; gives what peft knows it by."""
    from peft import LoraConfig, inject_adapter_in_model

    if not _linear_maps(backbone):
        raise BackboneError(
            f"backbone {name!r} ({backbone.config.model_type}) has no linear map that LoRA could "
            "stand beside; let something else of it train"
        )
    targets = _targets(backbone, name) if target_modules is None else target_modules
    targets = targets if isinstance(targets, str) else list(targets)
    for target in targets if target_modules is not None and isinstance(targets, list) else ():
        if not any(
            _is_called(path, target) and _is_linear(module)
            for path, module in backbone.named_modules()
        ):
            raise BackboneError(
                f"backbone {name!r} has no linear map called {target!r}; it has "
                f"{_linear_maps(backbone)}"
            )
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft only divides it by r
        lora_dropout=dropout,
        target_modules=targets,
    )
    lora.fan_in_fan_out = any(isinstance(module, Conv1D) for module in backbone.modules())
    try:
        inject_adapter_in_model(lora, backbone)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise BackboneError(
            f"backbone {name!r}: LoRA cannot be put beside {targets}: {reason}"
        ) from error
    return lora


def _targets(backbone: PreTrainedModel, name: str) -> Sequence[str] | str:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    kind = backbone.config.model_type
    known = {**_ALSO_QUERY_VALUE, **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING}
    if kind not in known:
        raise BackboneError(
            f"backbone {name!r} ({kind}): peft has no target modules of LoRA for it; set "
            "target_modules to some of "
            f"{_linear_maps(backbone)}, or to all-linear"
        )
    return known[kind]


def _is_called(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def _linear_maps(backbone: nn.Module) -> str:
    return ", ".join(
        dict.fromkeys(
            path.rpartition(".")[2] for path, m in backbone.named_modules() if _is_linear(m)
        )
    )


def _add_trainable(backbone: PreTrainedModel, kind: str, bottleneck: int, adapters: str) -> None:
    """Put the kind's trainable tensors into the backbone, in place, or let those train that are in
    it already.
    """
    if kind == "adapter":
        found = anatomy(backbone)
        for path, width in (*(found.mixers if adapters == "houlsby" else ()), *found.ends):
            end = backbone.get_submodule(path)
            end.adapter = Adapter(width, bottleneck, next(end.parameters()).device, adapters)
            end.register_forward_hook(lambda module, _, output: module.adapter(output))
    if kind == "bitfit":
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))


def _start(model: TrainableClassifier, seed: int) -> None:
    """Initial values of the new tensors.

    LoRA: A Kaiming-uniform and B zero, as peft does. Adapters: normal with deviation 0.01, so that
    they start near the identity (Houlsby et al. 2019, section 2.1). Head: normal with deviation
    0.02, BERT's own. New biases: zero.
    """
    for name, parameter in model.named_parameters():
        new = ".adapter." in name or ".lora_" in name
        new = new or (name.startswith("head.") and model.classes > 0)
        if not new or parameter.is_meta:
            continue
        mark = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mark))
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=generator)
        elif ".lora_B." in name or name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(
                parameter, std=0.02 if name.startswith("head.") else 0.01, generator=generator
            )


def _place(named: tuple[str, nn.Parameter]) -> tuple[int, int]:
    """Where a parameter stands in a state: the head, what lies outside the layers, layer 0, layer
    1, ...
    """
    name = named[0]
    layer = layer_of(name)
    return (0, 0) if name.startswith("head.") else (1, 0 if layer is None else layer + 1)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(tensors[name].shape) if name in tensors else "absent"
