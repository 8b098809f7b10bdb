"""The shared side network: gated bottleneck adapters beside a frozen backbone, additive on its
prediction.

PAE MobiLLM's equations (arXiv 2507.01216), with h the side state, A_k the activation of block k:

    mu_k = sigmoid(alpha_k / T)
    s_k  = (1 - mu_k) A_k + mu_k h_{k-1}
    h_k  = s_k + W_up gelu(W_down norm(s_k))
    y_s  = head(norm(h_B)),   y_hat = y_b + y_s

and Fed MobiLLM's hidden-size scaling (arXiv 2508.06765): A_k W_{m,k} for backbone m where its width
differs. The head starts at zero, so that training begins at the backbone's own prediction. With a
skip (`learning/side/skip.py`) y_s is the mean of this and of what the skip predicts, weighed by the
adapters' share; or the skip's alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from learning.side.config import SideNetworkConfig, SideShape
from learning.side.skip import Skip


class GatedAdapter(nn.Module):
    """One block: gate the incoming activation with the side state, then a bottleneck adapter with
    residual.
    """

    def __init__(self, width: int, bottleneck: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.alpha = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.normal_(self.up.weight, std=1e-3)  # every adapter begins as nearly the identity
        nn.init.zeros_(self.up.bias)

    def forward(self, a_BD: Tensor, h_BD: Tensor) -> Tensor:
        mu = torch.sigmoid(self.alpha / self.temperature)
        s_BD = (1 - mu) * a_BD + mu * h_BD
        return s_BD + self.up(F.gelu(self.down(self.norm(s_BD))))


class Standardiser(nn.Module):
    """Running mean and deviation of one backbone's vectors [vectors, d_m] over all records
    observed; no parameters.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, vectors: int, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(vectors, width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(vectors, width, dtype=torch.float64))
        self._scale: tuple[Tensor, Tensor] | None = None  # until the statistics change

    def observe(self, a_BVM: Tensor) -> None:
        """Take more records in (Chan et al. 1979: exact, whatever the order of the batches)."""
        self._scale = None
        values = a_BVM.double()
        count, mean = len(values), values.mean(dim=0)
        shift, total = mean - self.mean, self.count + count
        self.squares += ((values - mean) ** 2).sum(dim=0) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count.copy_(total)

    def forward(self, a_BVM: Tensor) -> Tensor:
        if self._scale is None:
            with torch.inference_mode(False):  # a prediction may be the first to ask
                self._scale = self._computed()
        mean, deviation = self._scale
        return (a_BVM - mean) / deviation

    def _computed(self) -> tuple[Tensor, Tensor]:
        """What is subtracted and what the rest is divided by, float32."""
        if self.count < 2:
            return torch.zeros_like(self.mean).float(), torch.ones_like(self.mean).float()
        deviation = (self.squares / self.count).sqrt()
        # a number that hardly varies carries nothing, and its rounding must not be blown up
        floor = 1e-3 * (self.mean**2 + deviation**2).mean(dim=-1, keepdim=True).sqrt() + 1e-12
        return self.mean.float(), torch.maximum(deviation, floor).float()

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._scale = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._scale = None
        super()._load_from_state_dict(*args, **kwargs)


class SideNetwork(nn.Module):
    """Maps a record's vectors [B, vectors, d_m] of backbone m to the prediction difference [B,
    classes].
    """

    place: Tensor

    def __init__(self, shape: SideShape, config: SideNetworkConfig, seed: int = 0) -> None:
        super().__init__()
        self.shape, self.config = shape, config
        self.register_buffer("place", torch.zeros(()), persistent=False)
        if shape.has_adapters:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self._draw_adapters()
        self.standardisers = nn.ModuleDict(
            {
                _key(name): Standardiser(shape.vectors, width)
                for name, width in shape.backbone_widths.items()
            }
            if config.normalise == "standard"
            else {}
        )
        self.skips = nn.ModuleDict(
            {
                _of_width(width): Skip(shape.vectors * width, shape.classes)
                for width in sorted(set(shape.backbone_widths.values()))
            }
            if shape.skip != "none"
            else {}
        )

    def _draw_adapters(self) -> None:
        shape = self.shape
        self.adapters = nn.ModuleList(
            GatedAdapter(shape.width, shape.bottleneck, self.config.gate_temperature)
            for _ in range(shape.blocks)
        )
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.classes)
        self.projections = nn.ParameterDict(
            {
                _key(name): _projections(shape.vectors, width, shape.width)
                for name, width in shape.backbone_widths.items()
                if shape.is_projected(name)
            }
        )
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def projection(self, backbone: str) -> Tensor | None:
        """The trainable projections [vectors, d_m, d_s] of a backbone; None where its width is the
        common one.
        """
        return self.projections.get(_key(backbone))

    def observe(self, a_BVM: Tensor, backbone: str) -> None:
        """Let the statistics of `normalise: standard` take these records in."""
        if self.config.normalise == "standard":
            standardiser = self.standardisers[_key(backbone)]
            assert isinstance(standardiser, Standardiser), "as they were all made"
            standardiser.observe(a_BVM.to(self.place.device))

    def fit(self, records: Mapping[str, tuple[Tensor, Tensor]]) -> float:
        """Solve the skip for the vectors [n, vectors, d_m] and targets [n, classes] of each
        backbone: one skip for all backbones of a width. Returns its squared error per record.

        Targets of a logistic one are [n, 2 classes], the truth (one-hot) and log y_b; its error is
        cross-entropy.
        """
        by_width: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for backbone, (a_BVM, y_BC) in sorted(records.items()):
            x_BF = self._normalised(a_BVM, backbone).flatten(1)
            by_width.setdefault(_of_width(a_BVM.shape[-1]), []).append((x_BF, y_BC.to(x_BF.device)))
        penalties = self.config.penalties
        error, count = 0.0, 0
        for width, parts in by_width.items():
            x_NF, y_NC = (torch.cat(part) for part in zip(*parts, strict=True))
            skip = self.skips[width]
            assert isinstance(skip, Skip), "as they were all made"
            if self.shape.skip == "logistic":
                one_hot_NC, log_y_b_NC = y_NC.chunk(2, dim=1)
                skip.fit_logistic(x_NF, one_hot_NC, log_y_b_NC, penalties)
                scores_NC = log_y_b_NC + skip(x_NF)
                error += float(F.cross_entropy(scores_NC, one_hot_NC, reduction="sum"))
            else:
                skip.fit(x_NF, y_NC, penalties)
                error += float(((skip(x_NF) - y_NC) ** 2).sum())
            count += len(x_NF)
        return error / count

    def forward(self, a_BVM: Tensor, backbone: str) -> Tensor:
        """The prediction difference [B, classes] of uploaded vectors [B, vectors, d_m]."""
        a_BVM = self._normalised(a_BVM, backbone)
        share = self.config.adapters if self.shape.has_adapters else 0.0
        y_BC = a_BVM.new_zeros(())
        if self.shape.has_adapters:
            y_BC = self._adapted(self._projected(a_BVM, backbone))
        if self.shape.skip == "none":
            return y_BC
        skip = self.skips[_of_width(a_BVM.shape[-1])]
        assert isinstance(skip, Skip), "as they were all made"
        if share and not skip.is_fitted:
            return y_BC
        return share * y_BC + (1 - share) * skip(a_BVM.flatten(1))

    def training_forward(
        self, parts: Sequence[tuple[str, Tensor]], masks: torch.Generator
    ) -> Tensor:
        """What the adapters alone say, as they are trained, of uploaded vectors [B_m, vectors, d_m]
        of several backbones, in one pass: [sum of B_m, classes], in the order given.

        `masks` draws the step's dropout, on the CPU, so the same on any device.
        """
        a_BVD = torch.cat(
            [
                self._projected(self._normalised(a_BVM, backbone), backbone)
                for backbone, a_BVM in parts
            ]
        )
        if self.config.dropout > 0:
            keep = 1 - self.config.dropout
            is_kept = torch.rand(a_BVD.shape, generator=masks) < keep
            a_BVD = a_BVD * is_kept.to(a_BVD.device) / keep
        return self._adapted(a_BVD)

    def _normalised(self, a_BVM: Tensor, backbone: str) -> Tensor:
        a_BVM = a_BVM.to(self.place.device)
        if self.config.normalise == "standard":
            return self.standardisers[_key(backbone)](a_BVM)
        if self.config.normalise == "layer":
            return F.layer_norm(a_BVM, a_BVM.shape[-1:])
        return a_BVM

    def _projected(self, a_BVM: Tensor, backbone: str) -> Tensor:
        projection = self.projection(backbone)
        return a_BVM if projection is None else torch.einsum("bvm,vmd->bvd", a_BVM, projection)

    def _adapted(self, a_BVD: Tensor) -> Tensor:
        blocks_VBD = list(a_BVD.unbind(dim=1))
        if self.shape.start == "embedding":
            h_BD = blocks_VBD.pop(0)
        else:
            h_BD = torch.zeros_like(blocks_VBD[0])
        for adapter, a_BD in zip(self.adapters, blocks_VBD, strict=True):
            h_BD = adapter(a_BD, h_BD)
        return self.head(self.norm(h_BD))


def _key(backbone: str) -> str:
    """A backbone's name as a module's, which may hold no dot and be no attribute's."""
    return "of " + backbone.replace("%", "%25").replace(".", "%2E")


def _of_width(width: int) -> str:
    """The name of what backbones of a width share."""
    return f"of width {width}"


def names_of(backbone: str, width: int) -> set[str]:
    """Under which names a state has what is a backbone's own, and what its width's."""
    return {_key(backbone), _of_width(width)}


def _projections(vectors: int, width_in: int, width_out: int) -> nn.Parameter:
    """One matrix a vector [vectors, d_m, d_s]; identity where widths agree, else random with
    orthonormal rows or columns.
    """
    if width_in == width_out:
        return nn.Parameter(torch.eye(width_in).repeat(vectors, 1, 1))
    return nn.Parameter(
        torch.stack([nn.init.orthogonal_(torch.empty(width_in, width_out)) for _ in range(vectors)])
    )


def save_side_network(network: SideNetwork, path: Path, **notes: str) -> None:
    """Write weights and shape to one safetensors file; `notes` (taps, readout, class names ...) go
    into its metadata.
    """
    header = {
        "shape": _shape_json(network.shape),
        "config": json.dumps(vars(network.config)),
        **notes,
    }
    tensors = {
        name: tensor.detach().contiguous().clone() for name, tensor in network.state_dict().items()
    }
    save_file(tensors, path, header)


def load_side_network(path: Path | str) -> tuple[SideNetwork, dict[str, str]]:
    """The network of `save_side_network`, ready to predict, and the notes stored beside it."""
    with safe_open(path, framework="pt") as file:
        notes = dict(file.metadata())
        names = file.keys()  # it is no dictionary
        tensors = {name: file.get_tensor(name) for name in names}
    network = SideNetwork(
        SideShape(**json.loads(notes.pop("shape"))),
        SideNetworkConfig(**json.loads(notes.pop("config"))),
    )
    network.load_state_dict(tensors)
    return network.eval(), notes


def _shape_json(shape: SideShape) -> str:
    return json.dumps({**vars(shape), "backbone_widths": dict(shape.backbone_widths)})
