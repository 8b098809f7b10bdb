"""Fed MobiLLM against its own definition: what is uploaded, how often, what the server may spend,
and what it learns.
"""

import json
from collections import Counter

import numpy as np
import pytest

from learning.side import taps
from learning.side.activations import Activations, decode, encode
from learning.side.prediction_difference import backbone_prediction, difference
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training
from sim.kernel.journal import Journal
from sim.kernel.learned import with_values
from sim.methods.side_tuning.replay_cache import ReplayCache
from sim.scenario.checks import problems
from sim.scenario.file import ScenarioError, load
from sim.scenario.schema import Scenario
from sim.simulation import RunCallbacks

ONE = {
    "fleet": [{"count": 1, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}],
    "arrivals": {"kind": "at-once"},
}


def test_one_device_is_centralised_side_tuning_in_a_plain_loop(simulate, curve):
    sim = simulate(**ONE)
    learner, config = sim.method.learner, sim.method.config
    samples, labels, test = sim.devices[0].samples, sim.task.labels, sim.task.test
    layers = [0, *taps.sample({"random-bert": 2})["random-bert"]]
    y_b = backbone_prediction("uniform", np.zeros((len(labels), 64), np.float32), 3)

    def vectors(of) -> np.ndarray:
        rows = [learner._row["random-bert"][int(i)] for i in of]
        return learner._readouts["random-bert"].take(rows, layers)

    held = {"random-bert": HeldOut(vectors(test), y_b[test], labels[test])}
    seed = sim.streams.seed64("server/side-network") % 2**31
    training = Training(config.learning_rate, config.weight_decay, config.loss)
    central = SideNetworkTrainer(learner.shape, config.side_network, training, held, seed)
    cache, losses = ReplayCache(sim.streams.rng("server/replay")), []
    # the clock decides only how many batches are there before each update; take that from the spans
    sizes = iter([4] * (len(samples) // 4))
    taken = 0
    for span in sim.recorder.spans().to_pylist():
        if span["kind"] != "train":
            continue
        for _ in span["flows"]:
            batch = samples[taken : taken + next(sizes)]
            taken += len(batch)
            targets = difference(labels[batch], y_b[batch])
            central.ingest(
                "random-bert", encode(Activations(vectors(batch), targets, batch), config.wire)
            )
            cache.insert("random-bert", len(batch))
        losses.append(central.step(cache.draw(config.server_batch)))
    assert taken == len(samples) == 60
    assert len(losses) == sim.updates
    for name, tensor in central.averaged.state_dict().items():
        assert np.array_equal(
            tensor.numpy(), learner.tuning.value.averaged.state_dict()[name].numpy()
        ), name
    assert curve(sim)[-1] == central.evaluate()["random-bert"]
    recorded = [m["value"] for m in sim.recorder.metrics().to_pylist() if m["name"] == "loss"]
    assert recorded == losses[4::5]


def test_it_learns_what_can_be_learned(simulate, curve):
    sim = simulate("method.replay=20")
    assert curve(sim)[-1] >= 0.95
    shares = {"random-bert": 2 / 3, "random-bert-l1": 1 / 3}  # the fleet's own mix
    for whole, *parts in zip(curve(sim), *(curve(sim, name) for name in shares), strict=True):
        assert whole == pytest.approx(
            sum(share * part for share, part in zip(shares.values(), parts, strict=True))
        )


@pytest.mark.parametrize("replay", [0.01, 0.1, 1, 2.5, 7, 20])
@pytest.mark.parametrize("share", [0, 0.25, 1])
@pytest.mark.parametrize("batch", [1, 7, 32, 1000])
def test_the_server_spends_its_budget_and_no_more(replay, share, batch, simulate):
    method = {
        "kind": "fed-mobillm",
        "replay": replay,
        "update_share_on_arrival": share,
        "server_batch": batch,
        "side_network": {"skip": "none"},
    }
    if replay * 60 < batch:
        with pytest.raises(ValueError, match="no update is ever granted"):
            simulate(dry=True, method=method)
        return
    assert simulate(dry=True, method=method, jitter=False).updates == int(
        replay * 60 / batch + 1e-9
    )


@pytest.mark.parametrize("kind", ["fed-mobillm", "single-side-network", "centralised"])
def test_a_skip_is_solved_ever_more_rarely_and_from_all_records_at_the_end(kind, simulate):
    method = {"kind": kind, "server_batch": 8, "side_network": {"skip": "ridge"}}
    plain = simulate(method=method | {"side_network": {"skip": "none"}}, jitter=False)
    sim = simulate(method=method, jitter=False)
    assert 1 <= sim.updates - plain.updates <= 12
    learners = getattr(sim.method.learner, "_of", {"": sim.method.learner}).values()
    solved = [
        int(skip.records)
        for learner in learners
        for skip in learner.tuning.value.averaged.skips.values()
    ]
    assert sum(solved) == 60 == sum(sim.method.fitted.values())


@pytest.mark.parametrize("adapters", [0.0, 0.25])
def test_a_run_with_a_skip_that_was_interrupted_goes_on_to_the_same_digest(
    adapters, simulate, tmp_path
):
    method = {"kind": "fed-mobillm", "side_network": {"skip": "ridge", "adapters": adapters}}
    straight, looks = simulate(method=method), []
    callbacks = RunCallbacks(on_progress=looks.append, should_stop=lambda: len(looks) >= 3)
    stopped = simulate(method=method, journal=Journal(tmp_path, False), callbacks=callbacks)
    assert stopped.ended.reason == "interrupted"
    resumed = simulate(method=method, journal=Journal(tmp_path, resume=True))
    assert resumed.method.learner.digest() == straight.method.learner.digest()


def test_no_skip_where_the_server_keeps_no_records(simulate):
    for method in ({"kind": "mobillm"}, {"kind": "pae-mobillm", "cache": False}):
        with pytest.raises(ValueError, match="is solved from all records"):
            simulate(dry=True, method=method | {"side_network": {"skip": "ridge"}})


@pytest.mark.parametrize(
    ("method", "skip"),
    [
        ({"kind": "fed-mobillm"}, "ridge"),
        ({"kind": "centralised"}, "ridge"),
        ({"kind": "fed-mobillm", "loss": "cross-entropy"}, "none"),
        ({"kind": "pae-mobillm"}, "ridge"),
        ({"kind": "pae-mobillm", "cache": False}, "none"),
        ({"kind": "mobillm"}, "none"),
        ({"kind": "fed-mobillm", "side_network": {"skip": "none"}}, "none"),
    ],
)
def test_ridge_is_solved_by_default_where_records_are_kept_and_errors_squared(
    method, skip, simulate
):
    sim = simulate(dry=True, method=method)
    assert sim.method.config.side_network.skip == sim.method.shape.skip == skip


UNFIT = [  # a method, its side network, and what is said against that
    ({"kind": "mobillm"}, {"adapters": 0.5}, "adapters: is for a `skip` alone"),
    ({"kind": "mobillm"}, {"penalty": 1}, "penalty: is for a `skip` alone"),
    ({"kind": "fed-mobillm", "loss": "cross-entropy"}, {"adapters": 0}, "the loss is cross-ent"),
    ({"kind": "mobillm"}, {"skip": "ridge"}, "none are kept: leave it out"),
    ({"kind": "local-lst"}, {"skip": "logistic"}, "none are kept: leave it out"),
    ({"kind": "pae-mobillm", "cache": False}, {"skip": "ridge"}, "or say `cache: true`"),
    ({"kind": "fed-mobillm"}, {"skip": "logistic"}, "say so by `loss: cross-entropy`"),
    ({"kind": "fed-mobillm"}, {"adapters": 0, "bottleneck": 8}, "bottleneck: is for adapters"),
    ({"kind": "fed-mobillm"}, {"adapters": 0, "averaging": 0.5}, "averaging: is for adapters"),
]


@pytest.mark.parametrize(("method", "side_network", "said"), UNFIT)
def test_a_side_network_that_cannot_be_is_refused_on_its_line(
    method, side_network, said, scenario_file
):
    method = {**method, "side_network": side_network}
    compared = {"methods": {"plain": {"kind": "fed-mobillm"}, "mine": method}}
    for changes, where in ({"method": method}, ""), ({"compare": compared}, "compare.methods.mine"):
        with pytest.raises(ScenarioError) as refused:
            load(str(scenario_file(**changes)), Scenario, check=problems)
        (problem,) = refused.value.problems
        assert f"{where or 'method'}.side_network." in problem and said in problem


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("fed-mobillm", name) for name in ("learning_rate", "replay", "update_share_on_arrival")),
        ("centralised", "weight_decay"),
        ("pae-mobillm", "epochs"),
    ],
)
def test_what_steps_read_alone_is_refused_where_all_is_solved(kind, name, scenario_file):
    method = {"kind": kind, name: 1, "side_network": {"adapters": 0}}
    with pytest.raises(ScenarioError, match=f"method.{name}: is for adapters"):
        load(str(scenario_file(method=method)), Scenario, check=problems)
    method["side_network"] = {"adapters": 0.5}
    load(str(scenario_file(method=method)), Scenario, check=problems)


def test_no_update_precedes_the_samples_that_grant_it(simulate):
    sim = simulate(dry=True)
    spans = sim.recorder.spans().to_pylist()
    landed = sorted(s["end_s"] for s in spans if s["kind"] == "upload")
    for number, update in enumerate([s for s in spans if s["kind"] == "train"], start=1):
        records = 4 * sum(end_s <= update["start_s"] for end_s in landed)
        assert number * 8 <= 5 * records


def test_with_eagerness_0_training_begins_when_the_last_payload_has_landed(simulate):
    spans = simulate("method.update_share_on_arrival=0", dry=True).recorder.spans().to_pylist()
    last_s = max(s["end_s"] for s in spans if s["kind"] == "upload")
    assert min(s["start_s"] for s in spans if s["kind"] == "train") == last_s


@pytest.mark.parametrize("device_batch", [1, 4, 7, 1000])
def test_every_record_is_uploaded_exactly_once(device_batch, simulate, payloads):
    sim = simulate(f"method.device_batch={device_batch}", "method.replay=1")
    sent = Counter(int(sample) for payload in payloads for sample in payload.samples)
    assert set(sent.values()) == {1}
    assert set(sent) == {int(sample) for device in sim.devices for sample in device.samples}
    assert len(sent) == 60
    for payload in payloads:
        received = decode(with_values(payload.data))
        assert received.samples.tolist() == payload.samples.tolist()
        assert len(payload.samples) <= device_batch
        assert set(payload.samples.tolist()) <= set(payload.sender.samples.tolist())
    assert [payload.number for payload in payloads] == list(range(1, len(payloads) + 1))


@pytest.mark.parametrize("wire", ["float32", "float16", "int8"])
@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize("start", ["embedding", "zero"])
def test_the_charged_bytes_are_the_real_bytes(wire, loss, start, simulate, payloads):
    sim = simulate(
        f"method.wire={wire}",
        f"method.loss={loss}",
        f"method.side_network.start={start}",
        "method.replay=1",
    )
    assert payloads
    for payload in payloads:
        assert len(with_values(payload.data)) == payload.nbytes
    assert sim.recorder.uplink_bytes == sum(len(with_values(payload.data)) for payload in payloads)
    if (
        loss == "squared-error"
    ):  # the server sees differences to the backbone's prediction, not labels as such
        assert decode(with_values(payloads[0].data)).targets.shape[1] == 3


def test_costing_as_another_architecture_changes_charges_and_not_learning(simulate, payloads):
    plain = simulate("jitter=false")
    own = len(payloads)
    costed = simulate("jitter=false", cost_as={"backbone": "bert-base", "tokens": 16})
    assert costed.costing.charged_as == "bert-base at 16 tokens"
    assert plain.costing.charged_as is None
    assert {with_values(p.data) for p in payloads[:own]} == {
        with_values(p.data) for p in payloads[own:]
    }
    assert all(payload.nbytes > len(with_values(payload.data)) for payload in payloads[own:])
    assert costed.updates == plain.updates
    assert costed.recorder.uplink_bytes > 5 * plain.recorder.uplink_bytes
    assert costed.ended.at_s > plain.ended.at_s


def test_costing_leaves_the_accuracy_of_every_update_alone(simulate, curve):
    one = {
        **ONE,
        "jitter": False,
        "method": {
            "kind": "fed-mobillm",
            "replay": 5,
            "update_share_on_arrival": 0,
            "server_batch": 8,
        },
    }
    plain, costed = simulate(**one), simulate(**one, cost_as={"backbone": "roberta-large"})
    assert curve(plain) == curve(costed)
    assert len(curve(plain)) >= 7
    assert plain.method.learner.digest() == costed.method.learner.digest()


def test_more_devices_send_the_same_bytes_for_the_same_texts(simulate):
    fleet = [{**ONE["fleet"][0], "count": 3}]
    one = simulate("method.device_batch=4", dry=True, **ONE).recorder.uplink_bytes
    three = simulate(
        "method.device_batch=4", dry=True, fleet=fleet, arrivals={"kind": "at-once"}
    ).recorder.uplink_bytes
    assert one == three


def test_the_saved_model_says_what_it_needs(mobifleet, scenario_file, tmp_path):
    from learning.side.network import load_side_network

    assert (
        mobifleet(
            "run", scenario_file(), "-q", "--no-figures", "--workers", "1", "--out", "run"
        ).code
        == 0
    )
    network, notes = load_side_network(tmp_path / "run" / "model" / "side_network.safetensors")
    assert network.shape.classes == 3
    assert not network.training
    assert json.dumps(notes)
    assert "max_tokens" in notes
