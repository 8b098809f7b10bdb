"""What attacks rest on: the texts that were really sent and trained on, decoys as a server sees
them, and what is said where nothing applies.
"""

import numpy as np
import pytest

from learning.side.activations import decode
from sim.api import run as run_scenario
from sim.kernel.learned import with_values
from sim.privacy.attacks import as_they_are, texts
from sim.privacy.of_models import members
from sim.privacy.report import report
from sim.privacy.uploads import uploads_of

TASK = {
    "dataset": {"path": "texts.csv"},
    "train": 60,
    "test": 30,
    "max_tokens": 16,
}
SIDE = {"replay": 5, "server_batch": 8, "device_batch": 4}
ALIKE = [{"count": 3, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"}]
CUT = {"times": ["40 ms", None, None]}
PEFT = {"participation": 0.34, "device_batch": 8}


@pytest.mark.parametrize(
    ("method", "dropout"),
    [
        ({"kind": "fed-mobillm", **SIDE}, CUT),
        ({"kind": "mobillm", "epochs": 1}, CUT),
        ({"kind": "upload-raw-text", **SIDE}, CUT),
        ({"kind": "fedavg-lora", "rounds": 1, **PEFT}, None),
        ({"kind": "fedbuff", "answers": 1, "buffer": 1, "concurrency": 0.3}, None),
        ({"kind": "splitfed-v1", "rounds": 1, "participation": 0.34}, None),
        ({"kind": "fedmezo", "rounds": 1, "participation": 0.34, "local_steps": 1}, None),
    ],
    ids=lambda value: value.get("kind", "") if isinstance(value, dict) else "",
)
def test_members_are_the_texts_that_went_into_the_model(method, dropout, scenario_file, tmp_path):
    more = {} if dropout is None else {"dropout": dropout}
    path = scenario_file(task=TASK, fleet=ALIKE, method=method, **more)
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    uploads = uploads_of(run, tmp_path)
    [trained] = uploads.trained.values()
    every = np.concatenate(uploads.sim.task.parts)
    assert 0 < len(trained) < len(every) and np.isin(trained, every).all()
    if dropout is None:  # of a single device, which was asked
        [asked] = [d for d in uploads.sim.devices if np.isin(d.samples, trained).any()]
        assert len(trained) <= len(asked.samples)
    [area, *_] = members(uploads)
    assert area.n == len(trained) + len(uploads.sim.task.test)


def test_only_what_has_arrived_is_sent_as_it_is(scenario_file, tmp_path):
    method = {"kind": "upload-raw-text", **SIDE}
    path = scenario_file(task=TASK, fleet=ALIKE, method=method, dropout=CUT)
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    uploads = uploads_of(run, tmp_path)
    [records] = {r["records"] for r in run.ledger().to_pylist() if r["kind"] == "text"}
    for kind in ("labels", "texts"):
        assert {one.n for one in as_they_are(uploads, kind)} == {records}
    assert records < sum(map(len, uploads.sim.task.parts))


MANY = {**TASK, "train": 45, "validation": 40, "test": 30}
SPLIT = {"rounds": 2, "participation": 1.0, "device_batch": 8, "peft": "lora"}


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ({"kind": "mobillm", "epochs": 1}, (1, 2)),
        ({"kind": "pae-mobillm", "shortcut": "matrix", "epochs": 1}, (1, 2)),
        ({"kind": "splitfed-v1", "layers": 1, **SPLIT}, (1,)),
        ({"kind": "splitfed-v2", "layers": 2, **SPLIT, "wire": "int8"}, (2,)),
        ({"kind": "fedbert", "rounds": 2, "device_batch": 8, "dropout": 0.0}, (0,)),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_who_sends_every_tokens_state_sends_the_text(method, layers, scenario_file, tmp_path):
    path = scenario_file(task=MANY, fleet=ALIKE, method=method)
    run = run_scenario(str(path), out=tmp_path / "run", figures=False)
    found = report(run, "texts", tmp_path)
    by_token = {one.attack: one for one in found.outcomes if "one by one" in one.attack}
    f1 = [one for one in found.outcomes if "one by one" in one.attack and one.what.endswith("F1")]
    assert len(f1) == len({one.attack for one in by_token.values()})
    sampled = {int(one.attack.rsplit(" ", 1)[1]) for one in f1}
    assert sampled <= {0, *layers} and max(sampled) == max(layers)
    for one in f1:  # the state of a token is that of the same token elsewhere, or nearly
        assert one.n == 45 and one.success > max(0.5, one.chance + 0.1)
    named = [o for o in found.outcomes if o.what == "text in top 1" and "layer" in o.attack]
    assert named and all(one.success > 0.9 for one in named)


def test_a_secret_rotation_hides_the_tokens_of_a_matrix(scenario_file, tmp_path):
    method = {"kind": "mobillm", "epochs": 1, "protection": {"rotate": True}}
    run = run_scenario(
        str(scenario_file(task=MANY, fleet=ALIKE, method=method)), out=tmp_path / "run"
    )
    found = report(run, "texts", tmp_path).outcomes
    f1 = [one for one in found if "one by one" in one.attack and one.what.endswith("F1")]
    assert f1 and all(one.success < 0.3 for one in f1)


def decoded(sim, payloads) -> list:
    width = sim.method.shape.backbone_widths["random-bert"]
    return [decode(with_values(payload.data), width) for payload in payloads]


@pytest.mark.parametrize("none", [0, 2])
def test_where_a_record_stands_and_lies_does_not_say_that_it_is_no_text(none, simulate, payloads):
    protection = {"decoys": 1.0, **({"decoy_classes": none} if none else {})}
    method = {"kind": "fed-mobillm", **SIDE, "wire": "float32", "protection": protection}
    sim = simulate(task=TASK, fleet=ALIKE, method={**method, "device_batch": 7})
    first, last = [], []
    for batch in decoded(sim, payloads):
        texts_N, n = batch.samples >= 0, len(batch) // 2
        assert texts_N.sum() == n
        first.append(texts_N[0])
        last.append(texts_N[-1])
        rows = batch.values.reshape(len(batch), -1)
        own, others = rows[texts_N], rows[~texts_N]
        for one in others:
            away = np.linalg.norm((own[:, None] + own) / 2 - one, axis=-1)
            assert away.min() > 1e-3 * np.linalg.norm(one)
    assert 0 < sum(first) < len(first) and 0 < sum(last) < len(last)


def test_what_decoys_cannot_be_made_of_is_refused_with_what_to_do(simulate):
    def of(batch: int, decoys: float = 1.0) -> None:
        method = {**SIDE, "device_batch": batch, "protection": {"decoys": decoys}}
        simulate(dry=True, task=TASK, fleet=ALIKE, method={"kind": "fed-mobillm", **method})

    with pytest.raises(ValueError, match=r"sends a text alone, .* say `device_batch: \d+`"):
        of(1)
    with pytest.raises(
        ValueError, match=r"comes to none: say 0\.07 or more, or `device_batch: 10`"
    ):
        of(8, 0.05)


def test_a_small_share_of_decoys_sends_some_in_every_payload(simulate, payloads):
    method = {"kind": "fed-mobillm", **SIDE, "device_batch": 7, "protection": {"decoys": 0.1}}
    sim = simulate(task=TASK, fleet=ALIKE, method=method)
    assert {int((batch.samples < 0).sum()) for batch in decoded(sim, payloads)} == {1}


def test_noise_is_learned_with_by_who_inverts(scenario_file, tmp_path, monkeypatch):
    from sim.privacy import attacks

    seen = []
    best = attacks.Inverter.best

    def noting(ways, *more):
        seen.append([way.std() for way in ways])
        return best(ways, *more)

    monkeypatch.setattr(attacks, "FEWEST", 10)
    monkeypatch.setattr(attacks.Inverter, "best", noting)
    for noise in (0.0, 1.0):
        method = {"kind": "fed-mobillm", **SIDE, "protection": {"activation_noise": noise}}
        path = scenario_file(task=TASK, fleet=ALIKE, method=method)
        run = run_scenario(str(path), out=tmp_path / f"run{noise}", figures=False)
        found = texts(uploads_of(run, tmp_path))
        chances = {one.chance for one in found if one.what == "tokens, F1"}
        assert len(chances) == 1  # a guess that is the same whatever is attacked
    clean, noisy = (next(s for s in seen if len(s) == n) for n in (1, 2))
    assert len(clean) == 1 and noisy[1] > 1.2 * noisy[0]


@pytest.mark.parametrize("kind", ["fwdllm", "fedmezo", "spry"])
def test_what_is_not_attacked_is_said_of_what_is_sent(kind, scenario_file, tmp_path):
    path = scenario_file(task=TASK, fleet=ALIKE, method={"kind": kind, "rounds": 1})
    got = report(run_scenario(str(path), out=tmp_path / "run", figures=False), folder=tmp_path)
    assert [one.what for one in got.outcomes][:1] == ["AUC"]
    of_what = [said.split(": ")[0] for said in got.remarks]
    assert of_what == ["no attack on labels", "no attack on texts"]
    assert all("sends nothing of a single text" in said for said in got.remarks)
