"""The golden schedules of the other families, and that of absences and heat, worked out by hand.

What is counted by hand here are FLOP, bytes, seconds and who waits for whom; the numbers of
devices and links are their profiles', and weights read are the counted ones (microseconds here).
random-bert: 2 layers of 4 maps of 64 x 64 and 2 of 64 x 128, 2048 words, 512 positions. A text has
16 tokens, each device 8 of them, one of 3 classes. Units of one text:

    m = 2 x 16 x 64 x 64  = 131,072 FLOP: a map of 64 x 64; one of 64 x 128 is 2 m
    a = 2 x 16 x 16 x 64  =  32,768 FLOP: scores of attention, or their sums of values
    a layer forward: (4 + 2 x 2) m + 2 a = 1,114,112 FLOP; backward, each product twice, 2,228,224
"""

import math
import runpy
from pathlib import Path

import pytest
from scipy.optimize import brentq

import devices.profile
import network.profile
from learning.side.activations import encoded_nbytes
from sim.methods.forward_only.fwdllm import Asked

golden = runpy.run_path(str(Path(__file__).with_name("test_simulation.py")))
CALM, SCHEDULES, ABSENCES = (golden[name] for name in ("CALM", "SCHEDULES", "ABSENCES"))
LAYER = 1_114_112
TX2, PI, A100, PHONE = map(
    devices.profile.load, ("jetson-tx2", "raspberry-pi-5", "a100", "phone-2024-flagship")
)
LTE, WIFI = map(network.profile.load, ("lte", "wifi-home"))


@pytest.fixture
def told(simulate, tmp_path):
    def tell(name: str) -> list[dict]:
        (tmp_path / "absences.csv").write_text(ABSENCES, encoding="utf-8")
        return simulate(dry=True, **{**CALM, **SCHEDULES[name]})

    return tell


def on(profile, flop: float, moved_bytes: float) -> float:
    """Seconds of a piece of work."""
    engine = profile.engine("simple")
    return (
        engine.overhead_s
        + flop / engine.flop_per_s
        + moved_bytes / profile.memory_bandwidth_bytes_per_s
    )


def up(link, nbytes: int) -> float:
    return link.latency_s + 8 * nbytes / link.up_bps


def down(link, nbytes: int) -> float:
    return link.latency_s + 8 * nbytes / link.down_bps


def times(sim, actor: str, *kinds: str) -> list[tuple]:
    rows = [s for s in sim.recorder.spans().to_pylist() if s["actor"] == actor]
    rows = [s for s in rows if not kinds or s["kind"] in kinds]
    return [(s["kind"], s["start_s"], s["end_s"]) for s in rows]


def laid(start_s: float, *steps: tuple[str, float]) -> list[tuple]:
    """Steps (kind, seconds) one after the other."""
    made = []
    for kind, seconds in steps:
        made.append((kind, start_s, start_s + seconds))
        start_s += seconds
    return made


def same(found: list[tuple], expected: list[tuple]) -> None:
    assert [kind for kind, *_ in found] == [kind for kind, *_ in expected]
    for (_, *mine), (_, *its) in zip(found, expected, strict=True):
        assert mine == pytest.approx(its, rel=1e-9)


def test_federated_peft(told):
    sim = told("federated-peft")
    # Trained: LoRA of rank 8 beside query and value of both layers, 4 x 8 x (64 + 64) = 4,096, and
    # the dense head, 64 x 65 + 3 x 65 = 4,355: 8,451 numbers, 33,804 bytes each way.
    # Forward, a text: 2 layers; 4 LoRAs of 2 x 16 x 8 x 128 = 32,768; head 2 x (64 x 64 + 64 x 3):
    forward = 2 * LAYER + 4 * 32_768 + 8_576  # 2,367,872
    # Backward: in layer 2 gradients pass all 8 m of maps and twice 2 a, in layer 1 only the output
    # map and the two of 128 (5 m), and, as no key has a gradient, 3 a; LoRA 2 x 32,768 for each of
    # layer 2's (weights and inputs) and 3 x 16,384 for layer 1's, whose inputs need none; the head.
    backward = 13 * 131_072 + 7 * 32_768 + 2 * 65_536 + 2 * 49_152 + 2 * 8_576  # 2,179,840
    flop, nbytes = 8 * (forward + backward), 4 * 8_451
    moved = sim.method.local_training(sim.devices[0], _NOTHING).cost.bytes_moved
    [aggregated, again] = [s for s in sim.recorder.spans().to_pylist() if s["kind"] == "aggregate"]
    assert aggregated["flop"] == 4 * 2 * 8_451
    computed = [s for s in sim.recorder.spans().to_pylist() if s["kind"] == "compute"]
    assert [s["flop"] for s in computed] == [flop] * 4
    fast_s = [("download", down(WIFI, nbytes)), ("compute", on(PI, flop, moved))]
    fast_s += [("upload", up(WIFI, nbytes))]
    slow_s = [("download", down(LTE, nbytes)), ("compute", on(TX2, flop, moved))]
    slow_s += [("upload", up(LTE, nbytes))]
    # two of three make a round, so it begins when the second has joined, at 0.5 s
    now_s = 0.5
    for number in range(2):
        first, second = (laid(now_s, *steps) for steps in (fast_s, slow_s))
        closes_s = second[-1][2]  # the round waits for the slower
        waits = ("wait", first[-1][2], closes_s)
        same(times(sim, "device-0002")[4 * number : 4 * number + 4], [*first, waits])
        same(times(sim, "device-0000")[3 * number : 3 * number + 3], second)
        mean_s = on(A100, 4 * 2 * 8_451, 8 * 2 * 8_451)
        same(
            times(sim, "server")[2 * number : 2 * number + 2],
            [("wait", now_s, closes_s), ("aggregate", closes_s, closes_s + mean_s)],
        )
        now_s = closes_s + mean_s
    assert again["end_s"] == sim.ended.at_s == pytest.approx(now_s, rel=1e-9)
    assert times(sim, "device-0001") == []  # it joins at 1 s


def test_forward_only(told):
    sim = told("forward-only")
    # Trained: biases, 2 x (4 x 64 + 128 + 64 + 2 x 64) + 64 = 1,216, and a head of 3 x 65: 1,411
    # numbers, 5,644 bytes; a direction is 12 bytes. An ask is two passes over 8 texts, each of two
    # layers and a head of 2 x 64 x 3; theta + h v, theta - h v and the gradient are 2 FLOP a number
    flop, nbytes = 2 * 8 * (2 * LAYER + 384) + 3 * 2 * 1_411, 4 * 1_411
    computed = [s for s in sim.recorder.spans().to_pylist() if s["kind"] == "compute"]
    assert [s["flop"] for s in computed] == [flop] * 6
    asked = Asked(None, None, {}, 0, 0, True, False)
    moved = sim.method.probing(sim.devices[0], asked).cost.bytes_moved
    now_s, expected = 1.0, []  # all three are there from 1 s on
    for ask, got in enumerate((nbytes + 12, 12)):  # asked again, they have the model
        fast = laid(
            now_s,
            *[("download", down(WIFI, got)), ("compute", on(PI, flop, moved))],
            ("upload", up(WIFI, nbytes)),
        )
        slow = laid(
            now_s,
            *[("download", down(LTE, got)), ("compute", on(TX2, flop, moved))],
            ("upload", up(LTE, nbytes)),
        )
        closes_s = slow[-1][2]
        waits = ("wait", fast[-1][2], closes_s)
        same(times(sim, "device-0002")[4 * ask : 4 * ask + 4], [*fast, waits])
        for device in ("device-0000", "device-0001"):
            same(times(sim, device)[3 * ask : 3 * ask + 3], slow)
        gathered_s = closes_s + on(A100, 3 * 1_411, 2 * 3 * nbytes)
        expected += [("wait", now_s, closes_s), ("gather", closes_s, gathered_s)]
        now_s = gathered_s
    # the step is on all six gradients
    expected += [("aggregate", now_s, now_s + on(A100, 4 * 6 * 1_411, 8 * 6 * 1_411))]
    same(times(sim, "server"), expected)
    assert sim.ended.at_s == pytest.approx(expected[-1][2], rel=1e-9)


def test_split(told):
    sim = told("split")
    # A device's part: 2,048 words, 512 positions, 2 segments and a norm of 2, of 64 each: 164,096;
    # a layer: 4 maps of 64 x 65, one of 128 x 65, one of 64 x 129, two norms of 2 x 64: 33,472
    own = 64 * (2_048 + 512 + 2 + 2) + 4 * 64 * 65 + 128 * 65 + 64 * 129 + 4 * 64  # 197,568
    model, vectors = 4 * own, 4 * 8 * 16 * 64  # of 8 x 16 tokens, 64 numbers each
    charged, [device, *_] = sim.method.charging, sim.devices
    moved = [
        f(device, device.samples, part).bytes_moved
        for part in (0, 1)
        for f in (charged.forward, charged.backward)
    ]
    ahead, back = 8 * LAYER, 2 * 8 * LAYER  # one layer here,
    served = 3 * 8 * (LAYER + 384)  # the other with the head there, forward and backward
    serve_s = on(A100, served, moved[2] + moved[3])

    def until_served(profile, link):
        return laid(
            1.0,
            *[("download", down(link, model)), ("compute", on(profile, ahead, moved[0]))],
            ("upload", up(link, vectors + 8 * 8)),  # and a length and a label for each text
        )

    def afterwards(start_s, profile, link):
        return laid(
            start_s,
            *[("download", down(link, vectors)), ("compute", on(profile, back, moved[1]))],
            ("upload", up(link, model)),
        )

    slow, fast = until_served(TX2, LTE), until_served(PI, WIFI)
    lands_s = slow[-1][2]  # of both Jetsons at once: the server takes one after the other
    served_s = [lands_s + serve_s, lands_s + 2 * serve_s, fast[-1][2] + serve_s]
    assert served_s[1] < fast[-1][2]  # the third finds it free
    ends = [
        afterwards(at_s, *how)
        for at_s, how in zip(served_s, [(TX2, LTE), (TX2, LTE), (PI, WIFI)], strict=True)
    ]
    closes_s = ends[2][-1][2]
    assert closes_s > ends[1][-1][2] > ends[0][-1][2]  # on WiFi the model takes longest
    for number, (before, end) in enumerate(zip((slow, slow, fast), ends, strict=True)):
        expected = [*before, ("wait", before[-1][2], served_s[number]), *end]
        expected += [("wait", end[-1][2], closes_s)] * (number < 2)
        same(times(sim, f"device-000{number}"), expected)
    same(times(sim, "server", "train"), [("train", end_s - serve_s, end_s) for end_s in served_s])
    # the mean is over both parts of all three, 4 FLOP and 8 bytes a number
    numbers = 3 * (own + 33_472 + 3 * 65)
    mean_s = on(A100, 4 * numbers, 8 * numbers)
    same(times(sim, "server", "aggregate"), [("aggregate", closes_s, closes_s + mean_s)])


def test_on_device(told):
    sim = told("on-device")
    # An epoch: the backbone over 8 texts with its pooler (2 x 64 x 64 each), and for each text
    # three times forward of a side network: two adapters of 64 x 8 there and back, a head of 64 x 3
    flop = 8 * (2 * LAYER + 8_192) + 8 * 3 * 2 * (2 * 2 * 64 * 8 + 64 * 3)
    moved = sim.method.own_round(sim.devices[0], 0).cost.bytes_moved
    for device, start_s, profile in zip(sim.devices, (0.0, 1.0, 0.5), (TX2, TX2, PI), strict=True):
        epoch = ("compute", on(profile, flop, moved))
        same(times(sim, device.id), laid(start_s, epoch, epoch))
    assert {s["flop"] for s in sim.recorder.spans().to_pylist()} == {flop}
    assert sim.ended.at_s == pytest.approx(1.0 + 2 * on(TX2, flop, moved), rel=1e-9)


def test_churn_and_heat(told):
    sim = told("churn-and-heat")
    # Two phones, on from 0 to 15 s, 45 to 70.1 s and from 80 s on; the second leaves for good at
    # 50 s. Charged: BERT-base over 16 texts of 512 tokens, 12 layers of 12 x 768^2 numbers, two
    # products of attention in each, a pooler: 1,546,207,100,928 FLOP, and 343 MB of weights.
    flop = 16 * (12 * (2 * 512 * 12 * 768**2 + 2 * 2 * 512**2 * 768) + 2 * 768**2)
    weights = sim.costing.architectures["random-bert"].forward(16, 512).bytes_moved
    work_s = on(PHONE, flop, weights)  # 0.001 + 9.730693 + 0.009017 = 9.740709 s when cold
    # Of heat h a phone has the speed 1 - 0.49 h, so in t seconds from h0 on it does
    # 0.51 t + 0.49 (1 - h0) 40 (1 - e^(-t / 40)); it heats by 40 s and cools by 160 s.
    f, tau_s, rest_s = 0.51, 40.0, 160.0
    assert (PHONE.sustained_factor, PHONE.sustained_tau_s) == (f, tau_s)

    def done(t, h):
        return f * t + (1 - f) * (1 - h) * tau_s * (1 - math.exp(-t / tau_s))

    def takes(h):
        return brentq(lambda t: done(t, h) - work_s, work_s, work_s / f, xtol=1e-12, rtol=1e-14)

    def heated(h, t):
        return 1 - (1 - h) * math.exp(-t / tau_s)

    def cooled(h, t):
        return h * math.exp(-t / rest_s)

    sends_s = up(WIFI, encoded_nbytes("float16", 16, 13, 768, 3))  # 319,856 bytes: 0.101624 s
    # 1. cold: 10.342934 s; heat 0.227848 then, 0.227703 after the upload
    first_s = takes(0.0)
    sent_s = first_s + sends_s  # 10.444558
    h = cooled(heated(0.0, first_s), sends_s)
    # 2. off at 15 s: 4.555442 s of work at a speed of 0.888 falling to 0.848 are lost
    lost = done(15 - sent_s, h) / work_s
    h = cooled(heated(h, 15 - sent_s), 30)  # 0.310833, after 30 s of rest 0.257690
    assert (lost, h) == (pytest.approx(0.405785, abs=1e-6), pytest.approx(0.257690, abs=1e-6))
    # 3. anew at 45 s, 11.807464 s; the other phone, as hot, leaves after 5 s of it
    again_s = takes(h)
    gone = done(5.0, h) / work_s
    h = cooled(heated(h, again_s), sends_s)
    # 4. the third batch begins at 56.909089 s, takes 13.147484 s
    begun_s = 45 + again_s + sends_s
    third_s = takes(h)
    # 5. its upload begins at 70.056573 s, is cut at 70.1 s and sent anew from 80 s on
    up_s = begun_s + third_s
    assert up_s == pytest.approx(70.056573, abs=1e-6)
    passed = (70.1 - up_s - WIFI.latency_s) * WIFI.up_bps / 8  # 124,167 bytes
    same(
        times(sim, "device-0000")[:-1],
        [
            ("compute", 0.0, first_s),
            ("upload", first_s, sent_s),
            ("compute", sent_s, 15.0),
            ("offline", 15.0, 45.0),
            ("compute", 45.0, 45 + again_s),
            ("upload", 45 + again_s, begun_s),
            ("compute", begun_s, up_s),
            ("upload", up_s, 70.1),
            ("offline", 70.1, 80.0),
            ("upload", 80.0, 80 + sends_s),
        ],
    )
    spans = sim.recorder.spans().to_pylist()
    mine, others = (
        [s for s in spans if s["actor"] == device.id and s["kind"] == "compute"]
        for device in sim.devices
    )
    assert [s["flop"] / flop for s in mine] == pytest.approx([1, lost, 1, 1], rel=1e-9)
    assert [s["flop"] / flop for s in others] == pytest.approx([1, lost, gone], rel=1e-9)
    assert others[-1]["end_s"] == 50 and others[-1]["outcome"] == "dropped"
    [cut] = [s for s in spans if s["kind"] == "upload" and s["outcome"] == "offline"]
    assert cut["nbytes"] == int(passed)
    # a phone draws 4.7 W at work however fast it is, and nothing of the study's while it is off
    assert sum(s["joules"] for s in mine) == pytest.approx(
        4.7 * (first_s + 15 - sent_s + again_s + third_s), rel=1e-9
    )
    assert all(s["joules"] == 0 for s in spans if s["kind"] == "offline")
    # then the one that is left gets the side network, as soon as the last record is learned
    [trained] = [end for _, _, end in times(sim, "server", "train")][-1:]
    [(_, start_s, end_s)] = times(sim, "device-0000", "download")
    assert start_s == trained and end_s == sim.ended.at_s
    assert trained - (80 + sends_s) == pytest.approx(0.00303, abs=1e-5)


class _NOTHING:
    """A task with nothing in it: what it costs depends on the device alone."""

    version, model = 0, None
