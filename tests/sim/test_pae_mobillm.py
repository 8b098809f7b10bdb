"""PAE MobiLLM and MobiLLM against their definition: what is computed, sent and learned, with each
saving on and off.
"""

import subprocess
import sys

import numpy as np
import pytest

from learning.side import activations, full_activations, taps
from learning.side.network import SideNetwork
from learning.side.prediction_difference import difference
from sim.kernel.learned import with_values

ONE = {
    "fleet": [{"count": 1, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}],
    "arrivals": {"kind": "at-once"},
}
ANEW = {"kind": "pae-mobillm", "epochs": 5, "device_batch": 4, "cache": False}
PAE = {"kind": "pae-mobillm", "epochs": 5, "server_batch": 8, "device_batch": 4}
MOBILLM = {"kind": "mobillm", "epochs": 2, "device_batch": 4}
VARIANTS = {
    "pivot": PAE,
    "pivot-no-cache": {**ANEW, "epochs": 2},
    "matrix": {**PAE, "shortcut": "matrix", "wire": "int8"},
    "matrix-no-cache": {**ANEW, "epochs": 2, "shortcut": "matrix", "wire": "float16"},
    "mobillm": MOBILLM,
}


@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
def test_a_dry_run_takes_the_same_time_and_bytes(method, simulate):
    real, dry = simulate(method=method), simulate(method=method, dry=True)
    assert real.recorder.spans().equals(dry.recorder.spans())
    assert real.updates == dry.updates > 0


@pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)
def test_the_charged_bytes_are_the_real_bytes(method, simulate, payloads):
    sim = simulate(method=method)
    assert sum(len(with_values(p.data)) for p in payloads) == sim.recorder.uplink_bytes
    assert all(len(with_values(p.data)) == p.nbytes for p in payloads)
    delivered = sum(sim.method.shape.shipped_bytes(d.backbone, "int8") for d in sim.devices)
    assert sim.recorder.downlink_bytes == delivered


def test_the_published_formula_gives_all_but_the_frame(simulate, payloads):
    """Activations: b n L d numbers once (cache and pivot), times tokens without the pivot, times
    epochs without the cache.
    """
    frame = 4 + 4 * 3  # sample number and targets of a record, in float32
    sizes = {}
    for name, method in {
        "both": PAE,
        "no-cache": ANEW,
        "matrix": {**PAE, "shortcut": "matrix"},
    }.items():
        payloads.clear()
        sim = simulate(method={**method, "device_batch": 60}, **ONE)
        d, vectors = sim.method.shape.backbone_widths["random-bert"], sim.method.shape.vectors
        tokens = (
            int(sim.lengths(sim.devices[0], sim.devices[0].samples).sum())
            if name == "matrix"
            else 60
        )
        sizes[name] = len(payloads), payloads[0].nbytes - 4 * vectors * d * tokens
        assert (
            frame * 60 <= sizes[name][1] <= (frame + 4) * 60 + 500
        )  # matrices carry lengths; a header of 500 bytes
    assert [n for n, _ in sizes.values()] == [1, 5, 1]


def test_a_recurring_sample_is_neither_computed_nor_sent_again(simulate, spans):
    stepped = PAE | {"side_network": {"skip": "none"}}
    how = {"dry": True, "jitter": False, **ONE}
    once, again = (simulate(method=method, **how) for method in (stepped, ANEW))
    assert len(spans(again, "compute")) == 5 * len(spans(once, "compute")) == 5 * 15
    assert again.recorder.uplink_bytes == 5 * once.recorder.uplink_bytes
    assert once.updates == 5 * 60 // 8  # so many epochs of updates all the same
    assert again.updates == 5 * 15


def test_with_a_cache_the_server_goes_on_when_the_device_is_done(simulate, spans):
    sim = simulate(method=PAE, dry=True, **ONE)
    last_s = max(s["end_s"] for s in spans(sim, "upload"))
    late = [s for s in spans(sim, "train") if s["start_s"] >= last_s]
    assert len(late) >= 4 / 5 * (5 * 60 // 8) - 1


def test_a_plain_loop_without_a_cache_gives_the_same_side_network(simulate):
    import torch

    method = {**VARIANTS["matrix-no-cache"], "side_network": {"dropout": 0}, "wire": "float32"}
    sim = simulate(method=method, **ONE)
    device, learner = sim.devices[0], sim.method.learner
    tokens = sim.task.tokens(sim.costing.learned["random-bert"], device.samples)
    from learning.backbones.backbone import Backbone

    backbone = Backbone(sim.costing.learned["random-bert"])
    layers = [0, *taps.sample({"random-bert": 2})["random-bert"]]
    vectors = torch.from_numpy(backbone.readouts(tokens, "mean")[:, layers])
    y_b = np.full((60, 3), 1 / 3, np.float32)
    targets = torch.from_numpy(difference(sim.task.labels[device.samples], y_b))
    network = SideNetwork(
        learner.shape,
        learner.config.side_network,
        sim.streams.seed64("server/side-network") % 2**31,
    )
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 1.0}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1e-3)
    for _ in range(2):
        for start in range(0, 60, 4):
            x, y = vectors[start : start + 4], targets[start : start + 4]
            network.observe(x, "random-bert")
            loss = ((network(x, "random-bert") - y) ** 2).sum() / len(x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for name, tensor in learner.tuning.value.network.state_dict().items():
        torch.testing.assert_close(
            tensor, network.state_dict()[name], atol=1e-5, rtol=1e-4, msg=name
        )


@pytest.mark.thorough
@pytest.mark.parametrize("variant", ["pivot", "matrix", "mobillm"])
def test_it_learns(variant, simulate, curve):
    sim = simulate(method={**VARIANTS[variant], "epochs": 20})
    assert curve(sim)[-1] >= 0.95


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_device_that_drops_out_stalls_nobody(variant, simulate, spans):
    half_s = 0.5 * simulate(method=VARIANTS[variant], dry=True).devices[0].finished_at_s
    sim = simulate(method=VARIANTS[variant], dry=True, dropped=(0, half_s))
    assert sim.ended.reason == "exhausted"
    assert [d.outcome for d in sim.devices] == ["dropped", "ok", "ok"]
    assert sim.updates > 0
    last = spans(sim, "compute", "upload", actor="device-0000")[-1]
    assert (last["end_s"], last["outcome"]) == (half_s, "dropped")


@pytest.mark.thorough
@pytest.mark.parametrize("variant", ["pivot-no-cache", "matrix", "mobillm"])
def test_the_same_seed_gives_the_same_digest_on_any_workers(variant, simulate, mark):
    first, second = (simulate(method=VARIANTS[variant], workers=workers) for workers in (1, 2))
    assert mark(first) == mark(second)
    other = simulate("seed=1", method=VARIANTS[variant])
    assert other.method.learner.digest() != first.method.learner.digest()


def test_the_server_sees_no_labels(simulate, payloads):
    sim = simulate(method=VARIANTS["matrix"])
    received = full_activations.decode(with_values(payloads[0].data), 64, "int8")
    labels = sim.task.labels[received.samples]
    np.testing.assert_allclose(
        received.targets, difference(labels, np.full((4, 3), 1 / 3, np.float32)), atol=1e-3
    )
    payloads.clear()
    simulate(method=PAE)
    assert activations.decode(with_values(payloads[0].data)).targets.shape == (4, 3)


def test_fresh_samples_are_sent_as_they_come(simulate, spans):
    fresh = {"kind": "poisson", "rate": "1 /s"}
    sim = simulate(method=PAE, dry=True, fresh_data=fresh, **ONE)
    device = sim.devices[0]
    waits = spans(sim, "wait", actor=device.id)
    assert waits
    starts = [s["start_s"] for s in spans(sim, "compute", actor=device.id)]
    ready = [batch.ready_s for batch in device.batches(4)]
    assert all(start >= at for start, at in zip(starts, ready, strict=True))
    assert min(s["start_s"] for s in spans(sim, "train")) < max(
        ready
    )  # the server does not wait for all


def test_four_bits_take_half_the_bytes_of_eight(simulate):
    eight, four = (simulate(dry=True, method={**PAE, "wire": wire}) for wire in ("int8", "int4"))
    shape = four.method.shape
    (width,) = {*shape.backbone_widths.values()}
    halved = sum(len(d.samples) for d in four.devices) * shape.vectors * width / 2
    saved = eight.recorder.uplink_bytes - four.recorder.uplink_bytes
    assert abs(saved - halved) < 0.02 * halved  # the header names another type


def test_the_methods_import_no_torch():
    code = (
        "import sim.methods, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


WIRES = {16: "float16", 8: "int8", 4: "int4"}


@pytest.mark.parametrize("bits", WIRES)
def test_mobillm_sends_every_layer_of_every_token_every_epoch(bits, simulate, payloads):
    sim = simulate(method={**MOBILLM, "wire": WIRES[bits], "device_batch": 60, "epochs": 3}, **ONE)
    tokens = int(sim.lengths(sim.devices[0], sim.devices[0].samples).sum())
    values = 3 * tokens * 64 * bits // 8  # embedding and two layers of width 64
    scales = 3 * tokens * 2 if bits < 16 else 0
    assert len(payloads) == 3
    for payload in payloads:
        assert payload.nbytes == len(with_values(payload.data))
        assert (
            0 <= payload.nbytes - values - scales - 60 * (4 + 4 + 2 * 3) <= 500
        )  # lengths, numbers, targets; a header


def test_mobillm_sends_labels(simulate, payloads):
    sim = simulate(method=MOBILLM)
    for payload in payloads[:5]:
        received = full_activations.decode(with_values(payload.data), 64, "int8")
        assert received.targets.tolist() == np.eye(3)[sim.task.labels[received.samples]].tolist()


def test_the_next_forward_pass_overlaps_the_upload(simulate, spans):
    overlapped, serial = (
        simulate(method={**MOBILLM, "overlap": on}, dry=True, jitter=False, **ONE)
        for on in (True, False)
    )
    for sim, overlaps in ((overlapped, True), (serial, False)):
        computed, sent = spans(sim, "compute"), spans(sim, "upload")
        meets = [
            c["start_s"] < u["end_s"] and u["start_s"] < c["end_s"] for c in computed for u in sent
        ]
        assert any(meets) == overlaps
        assert len(computed) == len(sent) == sim.updates == 30
    assert overlapped.recorder.uplink_bytes == serial.recorder.uplink_bytes
    assert overlapped.ended.at_s < serial.ended.at_s


def test_in_steady_state_a_batch_takes_as_long_as_the_slowest_stage(simulate, spans):
    """With constant stages (equal lengths, one private link) the device's run is first batch + (n -
    1) slowest stages.
    """
    equal = {"cost_as": {"backbone": {"random-bert": "random-bert"}, "tokens": 16}}
    method = {**MOBILLM, "epochs": 1}
    for link in ("lte", "ethernet-1g"):
        fleet = [{**ONE["fleet"][0], "link": link}]
        sim = simulate(
            method=method, dry=True, jitter=False, fleet=fleet, arrivals=ONE["arrivals"], **equal
        )
        times = [
            {s["end_s"] - s["start_s"] for s in spans(sim, kind)} for kind in ("compute", "upload")
        ]
        forward_s, upload_s = (max(stage) for stage in times)
        expected = forward_s + upload_s + 14 * max(forward_s, upload_s)
        assert spans(sim, "upload")[-1]["end_s"] == pytest.approx(expected, rel=0.05)


def test_mobillm_is_pae_mobillm_on_labels(simulate):
    """With the same order of records only the loss differs: every batch is one update, in either
    method.
    """
    one = {**VARIANTS["matrix-no-cache"], "wire": "int8"}
    pae, mobillm = simulate(method=one, dry=True, **ONE), simulate(method=MOBILLM, dry=True, **ONE)
    assert pae.recorder.uplink_bytes == mobillm.recorder.uplink_bytes
    assert pae.updates == mobillm.updates == 30
