"""What can be done with which architecture: every cell of the table in docs/models.md is a run of
tiny random models.

`python tests/learning/test_architectures.py` writes the table anew; a footnote is what mobifleet
itself says.
"""

import functools
import re
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from learning.backbones.backbone import Backbone
from learning.backbones.catalogue import BackboneError, find
from learning.backbones.layers import stack
from learning.backbones.loading import load_model
from learning.backbones.tokens import Tokens
from learning.cost.count import count_architecture
from learning.cost.count_forward_only import jvp_pass
from learning.cost.count_training import measure_step
from learning.cost.weightless_classifier import weightless_classifier
from learning.federated import split
from learning.federated.forward_gradient import (
    batch_loss,
    central_difference,
    directional_derivative,
)
from learning.federated.trainable import TrainableClassifier
from learning.side.activations import Activations, encode
from learning.side.config import SideNetworkConfig, shape_for
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training

torch.set_num_threads(1)
CONFIGS = runpy.run_path(str(Path(__file__).with_name("architectures.py")))["CONFIGS"]
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
CLASSES, LENGTHS = 3, (5, 9, 3, 7)
MASK = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
IDS = torch.randint(3, 64, MASK.shape, generator=torch.Generator().manual_seed(0)) * MASK
LABELS = torch.tensor([0, 2, 1, 0])
TOKENS = Tokens([ids[:length].int().numpy() for ids, length in zip(IDS, LENGTHS, strict=True)])
OURS = {"Mamba": ["in_proj", "x_proj"]}  # target modules where nobody has any
ONE_ADAPTER = ("MobileBERT", "Mamba")  # nothing but its end has a layer's width
# those that mobifleet knows and peft does not, or (Mixtral) will not look up
NOT_PEFTS = ("ALBERT", "DistilBERT", "MobileBERT", "ModernBERT", "MPNet", "Phi-3", "Mixtral")


def spec(name, suffix=""):
    return find(f"it{suffix}", {"it": {"random": CONFIGS[name]}})


@functools.cache
def bare(name):
    """The model itself, for what transformers and peft alone make of it."""
    model = load_model(spec(name))
    model.set_attn_implementation("eager")
    return model


def inputs(model):
    optional = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    return {"input_ids": IDS, "attention_mask": MASK, **optional}


def classifier(name, kind, **options):
    """A classifier a step away from its start, where half of LoRA's gradients are zero."""
    model = TrainableClassifier(spec(name), kind, CLASSES, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def loss_of(model):
    return F.cross_entropy(model(IDS, MASK), LABELS)


@functools.cache
def lora(name):
    """Options of LoRA for an architecture, and the remark that goes with them."""
    try:
        TrainableClassifier(spec(name), "lora", CLASSES)
    except BackboneError as error:
        return {"target_modules": OURS[name]}, str(error)
    return {}, None


# --- one function a column: runs it, holds it against another path, and returns a remark or nothing
# ------------------


def side_tuning(name):
    """Hidden states that are the same whatever text they are computed with, and a step of a side
    network on them.
    """
    backbone = Backbone(spec(name))
    states_NLD = backbone.readouts(TOKENS)
    alone = backbone.readouts(Tokens(TOKENS.ids[2:3]))
    assert np.isfinite(states_NLD).all() and np.array_equal(states_NLD[2:3], alone)
    layers, width = states_NLD.shape[1] - 1, states_NLD.shape[2]
    uniform = np.full((len(IDS), CLASSES), 1 / CLASSES, np.float32)
    shape = shape_for(SideNetworkConfig(), layers, {"it": width}, CLASSES)
    held_out = {"it": HeldOut(states_NLD, uniform, LABELS.numpy())}
    tuning = SideNetworkTrainer(shape, SideNetworkConfig(), Training(), held_out, seed=0)
    targets = np.eye(CLASSES, dtype=np.float32)[LABELS.numpy()] - uniform
    assert tuning.ingest(
        "it", encode(Activations(states_NLD, targets, np.arange(len(IDS))), "float32")
    ) == len(IDS)
    assert np.isfinite(tuning.step([0, 1, 2, 3]))


def depth_cut(name):
    """The cut's states are the uncut model's, and a step of training on it changes its output."""
    whole, cut = (Backbone(spec(name, suffix)).readouts(TOKENS) for suffix in ("", "-l2"))
    assert cut.shape[1] == 3 and np.array_equal(cut[:, :2], whole[:, :2])
    trained_step(TrainableClassifier(spec(name, "-l2"), "head", CLASSES))


def trained_step(model):
    """One step of AdamW: finite, of exactly the trainable tensors, downhill; returns how many
    numbers they hold.
    """
    loss, trained = loss_of(model), model.trainable_parameters()
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
    loss.backward()
    assert all((p.grad is not None) == (n in trained) for n, p in model.named_parameters())
    assert all(torch.isfinite(p.grad).all() for p in trained.values()) and torch.isfinite(loss)
    assert (
        any(p.grad.abs().sum() > 0 for n, p in trained.items() if not n.startswith("head."))
        or model.kind == "head"
    )
    optimiser.step()
    assert loss_of(model) < loss
    return sum(p.numel() for p in trained.values()) - CLASSES * (model.head.in_features + 1)


def lora_column(name):
    """Numbers and hidden states are those of peft's own PeftModel, with its own choice of targets
    where it has one.
    """
    options, remark = lora(name)
    model = classifier(name, "lora", **options)
    targets = options.get("target_modules")
    if targets is None and name not in NOT_PEFTS:
        config = LoraConfig(r=8, lora_alpha=8)
    else:
        ours = {
            path.rpartition(".")[2]
            for path, m in model.backbone.named_modules()
            if hasattr(m, "lora_A")
        }
        config = LoraConfig(r=8, lora_alpha=8, target_modules=sorted(ours))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GPT-2's transposed maps
        theirs = get_peft_model(load_model(spec(name)), config).eval()
    theirs.base_model.model.set_attn_implementation("eager")
    state = {
        n.removeprefix("backbone."): t
        for n, t in model.trainable().items()
        if n.startswith("backbone.")
    }
    with torch.no_grad():
        own = {
            n.removeprefix("base_model.model."): p
            for n, p in theirs.named_parameters()
            if p.requires_grad
        }
        assert own.keys() == state.keys()
        for n, parameter in own.items():
            parameter.copy_(state[n])
        h_BTD = theirs(**inputs(theirs)).last_hidden_state
        z_BD = (h_BTD * MASK[..., None]).sum(dim=1) / MASK.sum(dim=1, keepdim=True)
        assert torch.allclose(model(IDS, MASK), model.head(z_BD), atol=1e-5)
    assert trained_step(model) == sum(p.numel() for p in own.values())
    return remark and f"{remark} (here {', '.join(OURS[name])})"


def adapter(name):
    """Two bottlenecks of 16 a layer (of ALBERT, for all), or one, after which the layer's states
    are still its own at zero.
    """
    width, layers = bare(name).config.hidden_size, len(stack(bare(name)))
    for form, places in (("pfeiffer", 1), ("houlsby", 1 if name in ONE_ADAPTER else 2)):
        model = classifier(name, "adapter", adapters=form)
        assert trained_step(model) == places * layers * (2 * 16 * width + 16 + width)
    for n, parameter in model.trainable_parameters().items():
        if ".adapter." in n:
            parameter.data.zero_()
    plain = TrainableClassifier(spec(name), "head", CLASSES)
    plain.load_trainable({n: t for n, t in model.trainable().items() if n.startswith("head.")})
    assert torch.allclose(model(IDS, MASK), plain(IDS, MASK), atol=1e-6)


def bitfit(name):
    """Every bias of the bare model but a pooler's, which no readout uses."""
    biases = [
        p.numel()
        for n, p in bare(name).named_parameters()
        if n.endswith("bias") and not n.startswith("pooler")
    ]
    assert trained_step(classifier(name, "bitfit")) == sum(biases)


def full(name):
    """Every number of the bare model but a pooler's."""
    numbers = [p.numel() for n, p in bare(name).named_parameters() if not n.startswith("pooler")]
    assert trained_step(classifier(name, "full")) == sum(numbers)


def split_column(name):
    """SplitFed at every cut and FedBert: loss and gradients of the unsplit classifier, trained
    whole and by LoRA.
    """
    same_gradients(classifier(name, "lora", **lora(name)[0]))
    model = classifier(name, "full")
    embedding, body, end = split.fedbert(model)
    h_BTD = split.forward(embedding, embedding.trainable(), IDS, MASK).output
    h_BTD = split.forward(body, body.trainable(), h_BTD, MASK).output
    loss, _, _ = split.learn(end, end.trainable(), h_BTD, MASK, LABELS)
    assert loss == pytest.approx(float(loss_of(model).detach()), rel=1e-5)
    assert sorted((*embedding.names, *body.names, *end.names)) == sorted(model.trainable())
    try:
        same_gradients(model)
    except BackboneError as error:
        return str(error)
    return None


def same_gradients(model):
    trained = model.trainable_parameters()
    expected_loss = loss_of(model)
    expected = dict(
        zip(trained, torch.autograd.grad(expected_loss, list(trained.values())), strict=True)
    )
    for layers in range(len(stack(model.backbone)) + 1):
        client, server = split.splitfed(model, layers)
        sent = split.forward(client, client.trainable(), IDS, MASK)
        loss, gradients, back = split.learn(server, server.trainable(), sent.output, MASK, LABELS)
        got = {**gradients, **sent.backward(back)[0]}
        assert (
            loss == pytest.approx(float(expected_loss.detach()), rel=1e-5)
            and got.keys() == expected.keys()
        )
        for n, gradient in expected.items():
            assert torch.allclose(
                got[n], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max())
            ), (layers, n)


def forward_only(name):
    """Central differences (FwdLLM, FedMeZO) and forward-mode derivatives (Spry) against the
    gradient.
    """
    model = classifier(name, "lora", **lora(name)[0])
    state, loss = model.trainable(), batch_loss(model, IDS, MASK, LABELS)
    loss_of(model).backward()
    gradient = {n: p.grad for n, p in model.trainable_parameters().items()}
    slope = float(sum(g.square().sum() for g in gradient.values())) ** 0.5
    v = {
        n: g / slope for n, g in gradient.items()
    }  # straight uphill, where the loss changes most and rounds least
    assert central_difference(loss, state, v, 1e-2) == pytest.approx(slope, rel=0.02)
    try:
        assert directional_derivative(loss, state, v)[1] == pytest.approx(slope, rel=1e-4)
    except RuntimeError:
        with pytest.raises(BackboneError) as refused:  # before anything runs
            jvp_pass(spec(name), "lora", list(state), CLASSES, **lora(name)[0])
        return str(refused.value)
    return None


def cost(name):
    """FLOP without numbers are those that torch counts in a real forward pass, and in a real step
    of LoRA.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        bare(name)(**inputs(bare(name)))
    counted = count_architecture(CONFIGS[name])
    assert counted.forward(*IDS.shape).flop == forward.get_total_flops()
    assert counted.parameters == sum(p.numel() for p in bare(name).parameters())
    options = lora(name)[0]
    with FlopCounterMode(display=False) as step:
        loss_of(TrainableClassifier(spec(name), "lora", CLASSES, **options)).backward()
    read = measure_step(
        weightless_classifier(CONFIGS[name], "lora", CLASSES, **options), *IDS.shape
    )
    assert read.flop == step.get_total_flops() and 0 < read.saved_bytes < read.peak_bytes


COLUMNS = {
    "side-tuning": side_tuning,
    "depth cut": depth_cut,
    "LoRA": lora_column,
    "adapter": adapter,
    "BitFit": bitfit,
    "full": full,
    "split": split_column,
    "forward-only": forward_only,
    "cost": cost,
}


# --- the table
# ------------------------------------------------------------------------------------------


def row(name):
    """For each column whether it works, and what there is to say about it."""
    cells = {}
    for column, run in COLUMNS.items():
        try:
            remark, works = run(name), True
        except BackboneError as error:
            remark, works = str(error), False
        cells[column] = (works, remark and re.sub(r"^backbone 'it' \(\S+\):? ", "", remark))
    return cells


def written():
    """The rows of the page: architecture -> column -> (works, remark)."""
    text = PAGE.read_text(encoding="utf-8")
    notes = dict(re.findall(r"^<sup>(\d+)</sup> (.+?)(?:  )?$", text, flags=re.MULTILINE))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.split("<!-- table -->")[1].split("<!-- end -->")[0].splitlines()
        if line.startswith("|")
    ]
    head, body = rows[0], rows[2:]
    found = {}
    for name, *cells in body:
        marks = [re.fullmatch(r"(yes|no)(?: <sup>(\d+)</sup>)?", cell).groups() for cell in cells]
        found[name] = {
            c: (mark == "yes", notes.get(number))
            for c, (mark, number) in zip(head[1:], marks, strict=True)
        }
    return found


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("BERT", "Llama", "T5 encoder")
        else pytest.param(name, marks=pytest.mark.thorough)
        for name in CONFIGS
    ],
)
def test_every_cell_of_the_table_is_what_happens(name):
    assert written()[name] == row(name)


def test_the_table_has_every_architecture_and_no_other():
    assert list(written()) == list(CONFIGS) and len(CONFIGS) >= 20


def table():
    """The table and its footnotes, as they stand in the page."""
    rows = {name: row(name) for name in CONFIGS}
    numbers: dict[str, int] = {}
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, cells in rows.items():
        shown = []
        for works, remark in cells.values():
            number = remark and f" <sup>{numbers.setdefault(remark, len(numbers) + 1)}</sup>"
            shown.append(("yes" if works else "no") + (number or ""))
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(
        [*lines, "", *(f"<sup>{number}</sup> {remark}  " for remark, number in numbers.items())]
    )


if __name__ == "__main__":
    before, start, rest = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")
    PAGE.write_text(
        before + start + table() + "\n" + rest[rest.index("<!-- end -->") :], encoding="utf-8"
    )
