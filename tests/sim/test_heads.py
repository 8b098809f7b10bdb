"""One `head` setting for every method that trains a head: bytes and FLOP by hand, and what learns
has it.
"""

import pytest

from learning.backbones.catalogue import find
from learning.cost.count_forward_only import forward_architecture, jvp_pass
from learning.cost.count_split import part_architecture
from learning.cost.count_training import training_architecture
from learning.federated.trainable import TrainableClassifier
from sim.methods.federated_peft.fed_avg import FedAvg
from sim.methods.forward_only.fed_mezo import FedMezo
from sim.methods.forward_only.fwdllm import FwdLLM
from sim.methods.forward_only.spry import Spry
from sim.methods.split.fedbert import FedBert
from sim.methods.split.split_fed import SplitFed

AT_ONCE = {"arrivals": {"kind": "at-once"}, "jitter": False}
FLEET = [{"count": 2, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
SMALL = {
    "fwdllm": {"rounds": 1, "participation": 1.0, "variance_threshold": None},
    "fedmezo": {"rounds": 1, "local_steps": 2, "rank": 4},
    "spry": {"rounds": 1, "participation": 1.0},
    "splitfed-v1": {"rounds": 1},
    "fedbert": {"rounds": 1},
}
# RoBERTa-base, two classes: 12 layers of 4 x 768 + 3,072 + 768 biases and 2 norms' 768 each, one
# more norm's; LoRA of rank 8 on queries and values; a head of 768 x 2 + 2, and of 768 x 768 + 768
BIASES = 12 * (4 * 768 + 3_072 + 768 + 2 * 768) + 768
LORA = 12 * 2 * 2 * 8 * 768
LINEAR, SQUARE = 768 * 2 + 2, 768 * 768 + 768


@pytest.mark.parametrize(
    ("kind", "trained", "linear_bytes", "dense_bytes"),
    [("bitfit", BIASES, 414_728, 2_777_096), ("lora", LORA, 1_185_800, 3_548_168)],
)
def test_bytes_of_roberta_base_are_those_of_hand_and_of_federated_peft(
    kind, trained, linear_bytes, dense_bytes
):
    spec = find("roberta-base")
    for head, numbers, nbytes in (
        ("linear", trained + LINEAR, linear_bytes),
        ("dense", trained + SQUARE + LINEAR, dense_bytes),
    ):
        counted = forward_architecture(spec, kind, 2, 8, 16, head)
        assert counted.nbytes() == 4 * numbers == nbytes
        assert counted.nbytes() == training_architecture(spec, kind, 2, 8, 16, head).trainable_bytes


@pytest.mark.thorough
def test_a_square_map_costs_its_product():
    """2 x 768 x 768 FLOP a text forward; twice that backward, and three times where all of it
    carries derivatives, as every product in forward mode.
    """
    spec, product = find("roberta-base"), 2 * 768 * 768
    plain, dense = (
        forward_architecture(spec, "bitfit", 2, head=head) for head in ("linear", "dense")
    )
    assert dense.ahead.cost(3, 64).flop - plain.ahead.cost(3, 64).flop == 3 * product
    ends = [
        part_architecture(spec, None, head=True, head_kind=head) for head in ("linear", "dense")
    ]
    assert ends[1].trainable_bytes - ends[0].trainable_bytes == 4 * SQUARE
    passes = [one.forward(3, 64).flop + one.backward(3, 64).flop for one in ends]
    assert passes[1] - passes[0] == 3 * 3 * product
    front = [
        part_architecture(spec, 1, embeds=True, head_kind=head) for head in ("linear", "dense")
    ]
    assert front[0] == front[1]  # no head, whatever its kind
    carried = [
        jvp_pass(
            spec,
            "lora",
            list(forward_architecture(spec, "lora", 2, 8, 16, head).tensors),
            2,
            8,
            16,
            head,
        )
        for head in ("linear", "dense")
    ]
    assert carried[1].cost(3, 64).flop - carried[0].cost(3, 64).flop == 3 * 3 * product


@pytest.mark.parametrize("kind", SMALL)
def test_the_dense_head_is_sent_and_learns(kind, simulate, spans):
    """With `head: dense` the devices' bytes are those of the model that learns, and differ from a
    linear head's by the square map's wherever the head crosses the wire.
    """
    sims = {
        head: simulate(fleet=FLEET, method={"kind": kind, "head": head, **SMALL[kind]}, **AT_ONCE)
        for head in ("linear", "dense")
    }
    square = 4 * (64 * 64 + 64)
    nbytes = {
        head: {
            way: sum(s["nbytes"] for s in spans(sim, kind=way, actor="device-0000"))
            for way in ("upload", "download")
        }
        for head, sim in sims.items()
    }
    names = {
        head: {n for n in sim.method.learner.state.value if n.startswith("head.")}
        for head, sim in sims.items()
    }
    assert names["linear"] == {"head.weight", "head.bias"}
    assert names["dense"] == {
        f"head.{m}.{n}" for m in ("dense", "out_proj") for n in ("weight", "bias")
    }
    initial, state = sims["dense"].method.learner.initial, sims["dense"].method.learner.state.value
    for name in names["dense"]:
        assert initial[name].shape == state[name].shape and not initial[name].equal(state[name])
    up, down = (nbytes["dense"][way] - nbytes["linear"][way] for way in ("upload", "download"))
    batches = -(-len(sims["dense"].devices[0].samples) // 8)
    if kind == "fwdllm":  # of each batch; two tensors more are two numbers more of a direction
        guided = batches // 2
        assert (up, down) == (batches * square, batches * square + guided * 4 * 2)
    else:
        here = {"fedmezo": (0, square), "splitfed-v1": (0, 0)}  # seeds; at the server
        assert (up, down) == here.get(kind, (square, square))


def test_the_word_is_one():
    configs = (FedAvg, FwdLLM, FedMezo, Spry, SplitFed, FedBert)
    assert len({method.Config.model_fields["head"].annotation for method in configs}) == 1
    assert FedAvg.Config.model_fields["head"].default == "dense"


def test_who_leaves_it_alone_keeps_the_digest():
    for kind, method in (("fwdllm", FwdLLM), ("splitfed-v1", SplitFed), ("fedbert", FedBert)):
        assert "head" not in method.Config(kind=kind).model_dump()
        assert method.Config(kind=kind, head="dense").model_dump()["head"] == "dense"
    assert FedAvg.Config(kind="fedavg-lora").model_dump()["head"] == "dense"


def test_parts_with_a_dense_head_are_the_whole():
    whole = TrainableClassifier(find("random-bert"), "full", 3, head="dense")
    parts = [
        part_architecture(find("random-bert"), 1, True, False, "full", 3, head_kind="dense"),
        part_architecture(find("random-bert"), 1, False, True, "full", 3, head_kind="dense"),
    ]
    assert sum(part.trainable_bytes for part in parts) == whole.trainable_bytes
