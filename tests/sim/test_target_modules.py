"""The linear maps that LoRA is put beside, as a setting of every method that trains LoRA: charged,
sent and learned alike.
"""

import pytest

from learning.backbones.catalogue import find
from learning.federated.trainable import TrainableClassifier

METHODS = {
    "fedavg-lora": {"rounds": 1},
    "local-lora": {"rounds": 1},
    "flexlora": {"rounds": 1, "ranks": {"jetson-tx2": 3}},
    "fedasync": {"answers": 2},
    "splitfed-v1": {"peft": "lora", "rounds": 1},
    "splitfed-v2": {"peft": "lora", "rounds": 1},
    "fwdllm": {"peft": "lora", "rounds": 1, "most_asks": 1},
    "fedmezo": {"rounds": 1, "local_steps": 1, "rank": 4},
    "spry": {"rounds": 1},
}
FLEET = [{"count": 2, "device": "jetson-tx2", "backbone": "tiny", "link": "lte"}]
MAPS = ["o_proj", "down_proj"]
LLAMA = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
OWN = {
    "random": {
        **LLAMA,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
}


def run(simulate, kind, dry, **settings):
    method = {"kind": kind, **METHODS[kind], **settings}
    return simulate(
        fleet=FLEET, backbones={"tiny": OWN}, arrivals={"kind": "at-once"}, method=method, dry=dry
    )


def trained(rank, target_modules):
    return TrainableClassifier(
        find("tiny", {"tiny": OWN}), "lora", 3, rank=rank, target_modules=target_modules
    ).trainable()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", METHODS)
def test_what_is_charged_and_sent_is_what_is_trained(simulate, spans, kind):
    real, dry = (run(simulate, kind, dry, target_modules=MAPS) for dry in (False, True))
    rank = real.method.config.rank if kind != "flexlora" else 3
    state = trained(rank, MAPS)
    learner = real.method.learner
    names = {name for name in learner.state.value if ".lora_" in name}
    assert names == {name for name in state if ".lora_" in name}
    assert names and all(any(f".{m}." in name for m in MAPS) for name in names)
    sums = [
        [(s["kind"], s["nbytes"], s["flop"]) for s in sim.recorder.spans().to_pylist()]
        for sim in (real, dry)
    ]
    if kind != "fwdllm":  # which in a dry run cannot know whether gradients agree
        assert sums[0] == sums[1]
    default = run(simulate, kind, True)
    assert [s[1:] for s in sums[1]] != [
        (s["nbytes"], s["flop"]) for s in default.recorder.spans().to_pylist()
    ]


@pytest.mark.thorough
def test_uploads_are_the_bytes_of_these_maps(simulate, spans):
    for target_modules, numbers in ((MAPS, 2 * 8 * (16 + 16 + 32 + 16)), ("all-linear", None)):
        sim = run(simulate, "fedavg-lora", True, target_modules=target_modules, head="linear")
        [nbytes] = {s["nbytes"] for s in spans(sim, "upload", outcome="ok")}
        assert nbytes == 4 * sum(t.numel() for t in trained(8, target_modules).values())
        assert numbers is None or nbytes == 4 * (numbers + 3 * 17)


@pytest.mark.thorough
def test_flexlora_charges_the_maps_that_it_decomposes(simulate):
    sim = run(simulate, "flexlora", True, target_modules=MAPS)
    assert sorted(sim.method.maps("tiny")) == [(16, 16), (16, 16), (32, 16), (32, 16)]
    assert sorted(run(simulate, "flexlora", True).method.maps("tiny")) == [
        (16, 8),
        (16, 8),
        (16, 16),
        (16, 16),
    ]


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (
            "fedavg-lora",
            {"target_modules": ["o_proj", "wo"]},
            "no linear map called 'wo'; it has q_proj, k_proj, v_proj",
        ),
        ("spry", {"target_modules": ["norm"]}, "no linear map called 'norm'"),
        (
            "fwdllm",
            {"peft": "bitfit", "target_modules": ["q_proj"]},
            "method.target_modules: is for LoRA alone",
        ),
        ("splitfed-v1", {"peft": "full", "target_modules": "all-linear"}, "is for LoRA alone"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_maps_that_are_not_there_and_methods_without_lora_are_refused(
    simulate, kind, settings, words, dry
):
    with pytest.raises(ValueError, match=words):
        run(simulate, kind, dry, **settings)


def test_an_architecture_without_targets_of_its_own_says_what_to_set(simulate):
    mamba = {
        "model_type": "mamba",
        "vocab_size": 256,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "state_size": 4,
    }
    method = {"kind": "fedavg-lora", "rounds": 1}
    with pytest.raises(
        ValueError,
        match=r"'m' \(mamba\): peft has no target modules .* set target_modules to some of in_proj",
    ):
        simulate(
            fleet=[{**FLEET[0], "backbone": "m"}],
            backbones={"m": {"random": mamba}},
            method=method,
            dry=True,
            arrivals={"kind": "at-once"},
        )
