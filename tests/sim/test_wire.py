"""How vectors are sent, on the clock: true bytes, what devices compute for it, narrower side
networks, and predictions from what a run leaves.
"""

import numpy as np
import pytest

from learning.side.activations import Activations, encode
from learning.side.inference import InferenceError, SidePredictor
from sim.api import run as run_scenario
from sim.kernel.learned import with_values
from sim.privacy.attacks import labels, texts
from sim.privacy.uploads import uploads_of
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario

METHODS = {
    "fed-mobillm": {
        "kind": "fed-mobillm",
        "replay": 5,
        "update_share_on_arrival": 1,
        "server_batch": 8,
        "device_batch": 4,
    },
    "pae-mobillm": {"kind": "pae-mobillm", "epochs": 2, "server_batch": 8, "device_batch": 4},
}
METHODS["single-side-network"] = {**METHODS["fed-mobillm"], "kind": "single-side-network"}
TASK = {
    "dataset": {"path": "texts.csv"},
    "train": 60,
    "test": 30,
    "max_tokens": 16,
    "public": 25,
}
WIDTH = 64  # of the tiny backbones
SHAPED = [
    "bfloat16",
    "int8-channel",
    ["top-0.25", "float16"],
    ["random-16", "int8"],
    ["pca-16", "int4"],
]
CODED = [["pca-16", "top-0.5", "int8", "zstd"], ["float32", "zstd"]]


def sending(wire, kind="fed-mobillm", **more) -> dict:
    return {"task": TASK, "method": {**METHODS[kind], "wire": wire, **more}}


def flop_of_devices(sim) -> float:
    rows = sim.recorder.spans().to_pylist()
    return sum(row["flop"] for row in rows if row["actor"] != "server")


@pytest.mark.parametrize("wire", [*SHAPED, *CODED], ids=str)
def test_the_clock_carries_the_bytes_of_the_payloads(wire, simulate, payloads):
    sim = simulate(**sending(wire))
    sent = [len(with_values(p.data)) for p in payloads]
    assert sent == [p.nbytes for p in payloads] and sum(sent) == sim.recorder.uplink_bytes


@pytest.mark.parametrize("wire", SHAPED, ids=str)
def test_a_dry_run_takes_the_same_course(wire, simulate):
    real, dry = simulate(**sending(wire)), simulate(dry=True, **sending(wire))
    assert real.recorder.spans().equals(dry.recorder.spans())


def test_a_dry_run_charges_what_entropy_coding_would_shorten_and_says_so(simulate):
    plain, coded = (
        simulate(dry=True, **sending(wire)) for wire in ("float32", ["float32", "zstd"])
    )
    real = simulate(**sending(["float32", "zstd"]))
    assert real.recorder.uplink_bytes < 0.97 * coded.recorder.uplink_bytes
    assert coded.recorder.uplink_bytes == pytest.approx(plain.recorder.uplink_bytes, rel=0.05)
    said = [[r for r in sim.remarks if r.startswith("method.wire")] for sim in (coded, real)]
    assert len(said[0]) == 1 and "uploads are charged as before it" in said[0][0]
    assert not said[1]


def test_a_device_computes_for_what_it_sends(simulate):
    plain = simulate(dry=True, **sending("float16"))
    numbers = 60 * plain.method.shape.vectors * WIDTH
    for wire, flop in {
        "bfloat16": 0,
        "int8": 4 * numbers,
        ("top-0.25", "float16"): 8 * numbers,
        ("random-16", "float16"): 2 * 16 * numbers,
        ("float16", "zstd"): 5 * 2 * numbers,
    }.items():
        sim = simulate(dry=True, **sending(wire if isinstance(wire, str) else [*wire]))
        assert flop_of_devices(sim) - flop_of_devices(plain) == pytest.approx(flop), wire


def test_axes_of_public_texts_are_computed_sent_and_held(simulate):
    drawn, fitted = (
        simulate(dry=True, **sending([f"{kind}-16", "int8"])) for kind in ("random", "pca")
    )
    axes = fitted.method.shape.vectors * WIDTH * 16
    down = fitted.recorder.downlink_bytes - drawn.recorder.downlink_bytes
    assert down == len(fitted.devices) * 2 * axes
    assert fitted.recorder.uplink_bytes == drawn.recorder.uplink_bytes
    held = [sim.method.forward(sim.devices[0], np.arange(4)).cost for sim in (drawn, fitted)]
    assert held[1].peak_bytes - held[0].peak_bytes == 4 * axes - 4 * WIDTH * 16


def test_fewer_coordinates_make_a_narrower_side_network(simulate):
    whole, narrow = (simulate(**sending(wire)) for wire in ("int8", ["random-16", "int8"]))
    assert {*narrow.method.shape.backbone_widths.values()} == {16}
    assert narrow.recorder.downlink_bytes < whole.recorder.downlink_bytes / 2
    assert narrow.score > 0.6  # three classes


@pytest.mark.parametrize(
    "wire", [["pca-16", "top-0.5", "float16"], ["random-24", "float32"]], ids=str
)
def test_what_a_run_leaves_predicts_as_the_run_did(wire, scenario_file, tmp_path, simulate):
    path = scenario_file(**sending(wire))
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    task = simulate(dry=True, **sending(wire)).task
    own, truth = [task.texts.texts[i] for i in task.test], task.labels[task.test]
    names = np.array(task.class_names)[truth]
    for backbone, score in run.summary["by_backbone"].items():
        said, _ = SidePredictor.load(run.path, backbone).predict(own)
        assert np.mean(np.array(said) == names) == pytest.approx(score)
    (run.path / "model" / "projections.safetensors").unlink()
    with pytest.raises(InferenceError, match="along axes of their own: without these"):
        SidePredictor.load(run.path, "random-bert")


@pytest.mark.parametrize("wire", ["int8", "int4", "int8-channel"])
@pytest.mark.parametrize("kind", ["fed-mobillm", "pae-mobillm"])
def test_a_number_that_never_varies_does_no_harm_however_it_is_rounded(wire, kind, simulate):
    """The first token's embedding is every text's: what its rounding leaves is no sign."""
    sim = simulate(**sending(wire, kind, readout="first", taps=1))
    held = sim.method.learner.held_out_of("random-bert", sim.task.test)
    assert np.ptp(held.values[:, 0], axis=0).max() < 1e-6
    exact = simulate(**sending("float32", kind, readout="first", taps=1))
    assert sim.score > exact.score - 0.25


@pytest.mark.parametrize("kind", METHODS)
def test_attacks_read_what_is_sent_along_other_axes(kind, scenario_file, tmp_path):
    path = scenario_file(**sending(["pca-20", "int8", "zstd"], kind))
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    uploads = uploads_of(run, tmp_path)
    assert uploads.is_same
    assert {part.vectors.shape[-1] for part in uploads.vectors().values()} == {20}
    [first, *_] = labels(uploads)
    assert first.attack == "largest component" and first.success == 1.0
    found = {o.attack: o.success for o in texts(uploads)}
    nearest = [value for attack, value in found.items() if attack.startswith("nearest")]
    assert nearest and min(nearest) > 0.8, found


def test_a_payload_is_the_same_bytes_each_time():
    values = np.random.default_rng(0).standard_normal((4, 2, 8)).astype(np.float32)
    batch = Activations(values, np.zeros((4, 3), np.float32), np.arange(4))
    for wire in ("bfloat16", ["top-0.5", "int8"], ["int8", "zstd"]):
        assert len({encode(batch, wire) for _ in range(40)}) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_one_seed_gives_one_digest(workers, simulate, mark):
    one = mark(simulate(**sending(["pca-16", "top-0.5", "int4", "zstd"])))
    assert mark(simulate(workers=workers, **sending(["pca-16", "top-0.5", "int4", "zstd"]))) == one


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            sending(["random-65", "int8"]),
            "random-65: vectors of 64 numbers have not so many coordinates",
        ),
        (sending(["pca-32", "int8"]), "needs more than 32 public texts at the server: say `task"),
        (
            sending(["top-70", "int8"]),
            "top-70: of 64 numbers there are not so many: say at most 64",
        ),
    ],
)
def test_what_cannot_be_sent_so_is_told(changes, what, simulate):
    with pytest.raises(ValueError, match=what):
        simulate(dry=True, **changes)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ({**METHODS["fed-mobillm"], "wire": ["int8", "pca-4"]}, "'pca-4' comes too late"),
        ({"kind": "mobillm", "wire": ["int8", "zstd"]}, "sent in a number format alone: say int8"),
        (
            {**METHODS["pae-mobillm"], "shortcut": "matrix", "wire": ["top-3", "int8"]},
            "sent in a number format alone: say int8",
        ),
        ({**METHODS["pae-mobillm"], "bits": 7}, "wire"),
    ],
)
def test_what_is_no_wire_is_told_at_its_line(method, what, scenario_file):
    with pytest.raises(ScenarioError, match=what):
        load(str(scenario_file(task=TASK, method=method)), Scenario, (), [], problems)


@pytest.mark.parametrize(
    ("wire", "what"),
    [("randm-64", "did you mean random-64"), ("int9", "did you mean int8"), (8, "8 is no wire")],
)
def test_what_was_meant_is_said(wire, what, scenario_file):
    path = scenario_file(task=TASK, method={**METHODS["fed-mobillm"], "wire": [wire, "int8"]})
    if isinstance(wire, int):
        path = scenario_file(task=TASK, method={**METHODS["fed-mobillm"], "wire": wire})
    with pytest.raises(ScenarioError, match=what):
        load(str(path), Scenario, (), [], problems)


def test_a_dry_run_says_what_the_models_that_learn_have_not(simulate):
    costed = {"cost_as": {"backbone": "roberta-base", "tokens": 32}}
    with pytest.raises(ValueError, match=r"vectors of 64 numbers .* which learns"):
        simulate(dry=True, **sending(["random-96", "int8"]), **costed)


def test_bits_say_what_a_wire_says(simulate, mark):
    old, now = (
        simulate(task=TASK, method={**METHODS["pae-mobillm"], **said})
        for said in ({"bits": 8}, {"wire": "int8"})
    )
    assert mark(old) == mark(now)
    assert "method.bits is called wire now: say that" in old.remarks
