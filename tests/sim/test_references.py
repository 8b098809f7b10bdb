"""The references: what each sends and computes, what it learns, and that they meet Fed MobiLLM
where they must.
"""

import numpy as np
import pytest
from transformers import get_linear_schedule_with_warmup

from learning.side.activations import Activations, encode
from learning.side.config import SideNetworkConfig
from learning.side.prediction_difference import difference
from learning.side.tuning import SideNetworkTrainer, Training
from sim.kernel.device import Device
from sim.kernel.journal import Journal
from sim.kernel.learned import with_values
from sim.methods.on_device.local_lst import share_of_rate
from sim.methods.side_tuning.passes import device_pass
from sim.methods.side_tuning.replay_cache import ReplayCache
from sim.methods.side_tuning.text_wire import decode_texts
from sim.simulation import RunCallbacks
from sim.world.costing import DoesNotFit

ONE = {
    "fleet": [{"count": 1, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}],
    "arrivals": {"kind": "at-once"},
}
SMALL = {"server_batch": 8, "device_batch": 4, "replay": 5, "side_network": {"skip": "none"}}
METHODS = {
    "centralised": {"kind": "centralised", **SMALL},
    "upload-raw-text": {"kind": "upload-raw-text", **SMALL},
    "single-side-network": {"kind": "single-side-network", "update_share_on_arrival": 1, **SMALL},
    "local-lora": {"kind": "local-lora", "rounds": 3, "device_batch": 10, "evaluate_every": 3},
    "local-lst": {"kind": "local-lst", "epochs": 3, "device_batch": 5},
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_dry_run_takes_the_same_time_and_bytes(method, simulate):
    real, dry = simulate(method=method), simulate(method=method, dry=True)
    assert real.recorder.spans().equals(dry.recorder.spans())
    assert real.updates == dry.updates > 0


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_same_seed_gives_the_same_digest_on_any_workers(method, simulate, mark):
    first, second = (simulate(method=method, workers=workers) for workers in (1, 2))
    assert mark(first) == mark(second)
    other = simulate("seed=1", method=method)
    assert other.method.learner.digest() != first.method.learner.digest()


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind != "centralised"])
def test_a_device_that_drops_out_stalls_nobody(kind, simulate, spans):
    half_s = 0.5 * simulate(method=METHODS[kind], dry=True).devices[0].finished_at_s
    sim = simulate(method=METHODS[kind], dry=True, dropped=(0, half_s))
    assert sim.ended.reason == "exhausted"
    assert [d.outcome for d in sim.devices] == ["dropped", "ok", "ok"]
    assert sim.updates > 0
    last = spans(sim, "compute", "upload", actor="device-0000")[-1]
    assert (last["end_s"], last["outcome"]) == (half_s, "dropped")


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_learns(method, simulate, curve):
    longer = {"replay": 20, "epochs": 20, "rounds": 8}
    sim = simulate(method={**method, **{key: longer[key] for key in longer if key in method}})
    assert curve(sim)[-1] >= 0.95


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_what_was_learned_is_saved(method, simulate, tmp_path):
    sim = simulate(method=method)
    sim.method.learner.save(tmp_path / "model")
    assert list((tmp_path / "model").rglob("*.safetensors"))


@pytest.mark.parametrize("kind", ["centralised", "upload-raw-text"])
def test_one_device_of_fed_mobillm_learns_what_side_tuning_at_the_server_learns(
    kind, simulate, curve
):
    """Without rounding on the wire and with updates after all samples, who runs the backbone makes
    no difference.
    """
    fed = simulate(
        method={"kind": "fed-mobillm", "wire": "float32", "update_share_on_arrival": 0, **SMALL},
        **ONE,
    )
    late = {"update_share_on_arrival": 0} if kind == "upload-raw-text" else {}
    central = simulate(method={**METHODS[kind], **late}, **ONE)
    assert fed.updates == central.updates
    theirs, ours = (sim.method.learner.tuning.value.averaged.state_dict() for sim in (fed, central))
    for name, tensor in theirs.items():
        assert np.array_equal(tensor.numpy(), ours[name].numpy()), name
    assert curve(fed) == curve(central)


def test_raw_texts_arrive_as_they_were(simulate, monkeypatch, spans):
    made, make = [], Device.payload

    def spy(self, *args):
        made.append(make(self, *args))
        return made[-1]

    monkeypatch.setattr(Device, "payload", spy)
    sim = simulate(method=METHODS["upload-raw-text"])
    texts = sim.task.texts
    assert sorted(int(s) for p in made for s in p.samples) == sorted(
        int(s) for d in sim.devices for s in d.samples
    )
    for payload in made:
        expected = [(texts.texts[s], "", int(texts.labels[s])) for s in payload.samples]
        assert decode_texts(with_values(payload.data)) == expected
        assert (
            payload.nbytes
            == len(with_values(payload.data))
            == sum(10 + len(text.encode()) for text, *_ in expected)
        )
    assert sim.recorder.uplink_bytes == sum(payload.nbytes for payload in made)
    assert not spans(sim, "compute", actor="device")


def test_texts_charged_by_tokens_take_the_bytes_of_tokens(simulate):
    sim = simulate(
        method=METHODS["upload-raw-text"],
        dry=True,
        cost_as={"backbone": "bert-base", "tokens": 100},
    )
    assert sim.recorder.uplink_bytes == 60 * (370 + 10)


def test_centralised_costs_devices_nothing(simulate, curve, spans):
    sim = simulate(method=METHODS["centralised"])
    assert not spans(sim, "compute", "upload", "download", "wait", actor="device")
    assert spans(sim, "forward", actor="server")[0]["start_s"] == 0
    assert curve(sim, "random-bert") == curve(sim, "random-bert-l1")
    assert sim.method.backbone == "random-bert"  # the one with more parameters
    assert simulate(
        "method.backbone=random-bert-l1", method=METHODS["centralised"]
    ).method.backbone.endswith("l1")


def test_a_backbone_that_nobody_runs_is_refused(mobifleet, scenario_file):
    path = scenario_file(method={**METHODS["centralised"], "backbone": "minilm"})
    outcome = mobifleet("run", path, "--dry", "-q", "--no-figures")
    assert outcome.code != 0
    assert "choose one of random-bert, random-bert-l1" in outcome.err


def test_separate_side_networks_get_the_uploads_of_a_shared_one(simulate, spans):
    shared = simulate(
        method={"kind": "fed-mobillm", "update_share_on_arrival": 1, **SMALL}, dry=True
    )
    single = simulate(method=METHODS["single-side-network"], dry=True)
    devices = ("compute", "upload")
    assert spans(shared, *devices, actor="device") == spans(single, *devices, actor="device")
    assert single.updates == sum(5 * n // 8 for n in (40, 20))


def test_a_side_network_of_its_own_learns_as_if_the_others_were_not_there(simulate, curve):
    method = {**METHODS["single-side-network"], "update_share_on_arrival": 0, "wire": "float32"}
    sim = simulate(method=method)
    learner, device, name = (
        sim.method.learner._of["random-bert-l1"],
        sim.devices[2],
        "random-bert-l1",
    )
    seed = sim.streams.seed64("server/side-network") % 2**31
    alone = SideNetworkTrainer(
        learner.shape,
        SideNetworkConfig(),
        Training(1e-3, 1.0, "squared-error"),
        learner.tuning.value.held_out,
        seed,
    )
    cache = ReplayCache(sim.streams.rng("server/replay", name))
    y_b = np.full((len(sim.task.labels), 3), 1 / 3, np.float32)
    for batch in device.batches(4):
        rows = [learner._row[name][int(i)] for i in batch.samples]
        vectors = learner._readouts[name].take(rows)  # the embedding and its one layer
        targets = difference(sim.task.labels[batch.samples], y_b[batch.samples])
        alone.ingest(name, encode(Activations(vectors, targets, batch.samples), "float32"))
        cache.insert(name, len(batch.samples))
    for _ in range(5 * 20 // 8):
        alone.step(cache.draw(8))
    for key, tensor in alone.averaged.state_dict().items():
        assert np.array_equal(
            tensor.numpy(), learner.tuning.value.averaged.state_dict()[key].numpy()
        ), key
    assert curve(sim, name)[-1] == alone.evaluate()[name]


@pytest.mark.parametrize("kind", ["local-lora", "local-lst"])
def test_a_device_on_its_own_sends_and_receives_nothing(kind, simulate, spans):
    sim = simulate(method=METHODS[kind], dry=True)
    assert sim.recorder.uplink_bytes == sim.recorder.downlink_bytes == 0
    for device in sim.devices:
        assert len(spans(sim, "compute", actor=device.id)) == 3
        assert device.peak_memory_bytes > sim.costing.weight_bytes(device.member)


def test_a_device_holds_its_own_side_network_with_gradients_and_moments(simulate):
    task = {"dataset": {"path": "texts.csv"}, "max_tokens": 16, "train": 10, "test": 12}
    fleet = [{"count": 1, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
    world = {"task": task, "fleet": fleet, "arrivals": {"kind": "at-once"}}
    sim = simulate(method=METHODS["local-lst"], **world)
    device, learner = sim.devices[0], sim.method.learner
    trainer = learner._tunings[device.id].value
    numbers = sum(p.numel() for p in trainer.network.parameters() if p.requires_grad)
    shape, lengths = sim.method.shapes["random-bert"], sim.lengths(device, device.samples)
    vectors = 4 * 5 * shape.vectors * shape.backbone_widths["random-bert"]  # a batch of five
    passes = [
        device_pass(sim.method.config, sim, device, lengths[start : start + 5]).peak_bytes
        for start in (0, 5)
    ]
    needed = sim.costing.weight_bytes(device.member) + max(passes) + vectors + 16 * numbers
    assert sim.devices[0].peak_memory_bytes == needed
    fleet[0]["memory"] = f"{needed} B"
    assert simulate(method=METHODS["local-lst"], dry=True, **world).devices[0].outcome == "ok"
    fleet[0]["memory"] = f"{needed - 1} B"
    with pytest.raises(DoesNotFit, match="1 B short"):
        simulate(method=METHODS["local-lst"], dry=True, **world)


def test_local_lora_is_local_training_device_by_device(simulate, curve):
    import torch

    from learning.federated.trainable import TrainableClassifier

    sim = simulate(method={**METHODS["local-lora"], "rounds": 2})
    learner, device, name = sim.method.learner, sim.devices[2], "random-bert-l1"
    spec, test = sim.costing.learned[name], sim.task.test
    model = TrainableClassifier(
        spec, "lora", 3, "mean", 8, 8, 16, sim.streams.seed64("server/model") % 2**31, head="dense"
    )
    trained = list(model.trainable_parameters().values())
    labels, own = torch.from_numpy(sim.task.labels), sim.task.tokens(spec, device.samples)
    for number in range(2):
        optimiser = torch.optim.AdamW(trained, lr=5e-3, weight_decay=0.0)
        rng = np.random.default_rng(
            sim.streams.seed64("local-training", f"{device.id}/{number}") % 2**31
        )
        order = rng.permutation(20)
        model.train()
        torch.manual_seed(sim.streams.seed64("local-training", f"{device.id}/{number}") % 2**31)
        for chosen in (order[:10], order[10:]):
            loss = torch.nn.functional.cross_entropy(
                model(*padded([own.ids[i] for i in chosen])), labels[device.samples[chosen]]
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for key, tensor in model.trainable().items():
        torch.testing.assert_close(
            learner.states[device.id].value[key], tensor, atol=1e-5, rtol=1e-4, msg=key
        )
    with torch.inference_mode():
        model.eval()
        predicted = model(*padded(sim.task.tokens(spec, test).ids)).argmax(dim=1).numpy()
    assert curve(sim, name)[-1] == pytest.approx((predicted == sim.task.labels[test]).mean())


def padded(ids):
    """Token numbers and their mask, padded with zeros, and no segments."""
    import torch

    longest = max(map(len, ids))
    rows = torch.tensor([[*map(int, row), *[0] * (longest - len(row))] for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return rows, mask, None


def test_the_evaluated_devices_are_a_seeded_sample_with_every_backbone(simulate):
    everyone = simulate(method={**METHODS["local-lora"], "rounds": 1})
    few = simulate(method={**METHODS["local-lora"], "rounds": 1, "evaluated_devices": 1})
    assert list(everyone.method.learner.evaluated) == [d.id for d in everyone.devices]
    chosen = few.method.learner.evaluated
    assert sorted(chosen.values()) == ["random-bert", "random-bert-l1"]  # one of each is the least
    assert set(few.method.learner.states) == set(chosen)
    assert few.recorder.spans().equals(
        everyone.recorder.spans()
    )  # the others are charged all the same
    for device in chosen:
        for name, tensor in few.method.learner.states[device].value.items():
            assert tensor.equal(everyone.method.learner.states[device].value[name])


def test_a_ladder_on_the_device_is_side_tuning_of_its_own_records(simulate, curve):
    sim = simulate(method=METHODS["local-lst"])
    learner, device, name = sim.method.learner, sim.devices[2], "random-bert-l1"
    shared = learner._of[name]
    seed = sim.streams.seed64("local/side-network", device.id) % 2**31
    alone = SideNetworkTrainer(
        shared.shape,
        SideNetworkConfig(),
        Training(3e-3, 0.0, "cross-entropy"),
        shared.tuning.value.held_out,
        seed,
    )
    vectors = shared._readouts[name].take([shared._row[name][int(i)] for i in device.samples])
    y_b = np.full((20, 3), 1 / 3, np.float32)
    targets = np.concatenate([difference(sim.task.labels[device.samples], y_b) + y_b, y_b], axis=1)
    alone.ingest(name, encode(Activations(vectors, targets, device.samples), "float32"))
    # three epochs of four steps, of which a fifth, two, warm up
    schedule = get_linear_schedule_with_warmup(alone.optimiser, 2, 12)
    for number in range(3):
        order = sim.streams.rng("local/order", f"{device.id}/{number}").permutation(20)
        for start in range(0, 20, 5):
            alone.step(order[start : start + 5].tolist())
            schedule.step()
    for key, tensor in alone.averaged.state_dict().items():
        assert np.array_equal(tensor.numpy(), learner.states[device.id].value[key].numpy()), key
    assert curve(sim, name)[-1] == alone.evaluate()[name]


def test_a_ladders_steps_rise_and_fall():
    """Ten steps, two of which warm up: nothing, a half, all, then down by eighths; LST's own, 500
    of 740 for MRPC (20 epochs of 3,668 texts in batches of 100), likewise.
    """
    shares = [share_of_rate(step, 10, 2) for step in range(10)]
    assert shares == [0, 1 / 2, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert share_of_rate(250, 740, 500) == 0.5 and share_of_rate(620, 740, 500) == 0.5
    assert [share_of_rate(step, 4, 0) for step in range(4)] == [1, 3 / 4, 2 / 4, 1 / 4]
    assert [share_of_rate(step, 4, 4) for step in range(4)] == [0, 1 / 4, 2 / 4, 3 / 4]


def test_a_ladder_with_a_cache_runs_the_backbone_once(simulate, spans):
    again, once = (
        simulate(method={**METHODS["local-lst"], "cache": c}, dry=True) for c in (False, True)
    )
    flop = [
        [s["flop"] for s in spans(sim, "compute", actor="device-0000")] for sim in (again, once)
    ]
    assert flop[0] == [flop[0][0]] * 3
    assert flop[1][0] == flop[0][0]
    device = again.devices[0]
    side = sum(
        again.method.shapes[device.backbone].training_step({device.backbone: 5}).flop
        for _ in range(4)
    )
    assert flop[1][1:] == pytest.approx([side] * 2)
    assert once.devices[0].peak_memory_bytes > again.devices[0].peak_memory_bytes


def test_a_reached_target_ends_every_device(simulate):
    sim = simulate(
        method={**METHODS["local-lst"], "epochs": 500}, stop={"target": 0.5}, evaluate_every=1
    )
    assert sim.ended.reason == "target"
    assert sim.updates < 1500


RESUMED = {
    **{kind: METHODS[kind] for kind in ("upload-raw-text", "single-side-network", "local-lora")},
    "pae-mobillm-no-cache": {"kind": "pae-mobillm", "epochs": 2, "cache": False, "device_batch": 4},
    "mobillm": {"kind": "mobillm", "epochs": 2, "device_batch": 4},
}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, id=name, marks=[] if "mobillm" in name else pytest.mark.thorough)
        for name, method in RESUMED.items()
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_digest(method, simulate, mark, tmp_path):
    straight = simulate(method=method)
    looks, enough = (
        [],
        1 if method["kind"].startswith("local") else 5,
    )  # at each, twenty events have passed
    callbacks = RunCallbacks(on_progress=looks.append, should_stop=lambda: len(looks) >= enough)
    stopped = simulate(method=method, journal=Journal(tmp_path, False, 0.0), callbacks=callbacks)
    assert stopped.ended.reason == "interrupted"
    resumed = simulate(method=method, journal=Journal(tmp_path, resume=True))
    assert resumed.ended.reason == "exhausted"
    assert mark(resumed) == mark(straight)
