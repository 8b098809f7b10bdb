"""Prediction with a trained side network: what training reported, text by text, and clear words
where it cannot be had.
"""

import dataclasses
import json

import numpy as np
import pytest
import scipy.special
import torch

from learning.backbones import catalogue
from learning.backbones.tokens import tokenise
from learning.side import taps
from learning.side.activations import Activations, encode
from learning.side.config import SideNetworkConfig, shape_for
from learning.side.inference import InferenceError, SidePredictor, notes_for
from learning.side.prediction_difference import backbone_prediction, difference
from learning.side.readouts import compute
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training

CLASSES = ["person", "place", "time"]
ENTITIES = [["poet", "king", "author"], ["city", "river", "island"], ["year", "century", "month"]]
OWN = {
    "mine": {
        "random": {**catalogue.config_of(catalogue.find("random-bert")), "hidden_size": 32},
        "seed": 3,
    }
}
BACKBONES = ("random-bert", "random-llama", "mine")


def questions(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    texts = [
        f"which {rng.choice(ENTITIES[y])} was it {' '.join(rng.choice(list('abcdef'), 4))}"
        for y in labels
    ]
    return texts, labels


@dataclasses.dataclass
class Trained:
    """What a run leaves, the texts that it was scored on, and its scores."""

    folder: object
    tuning: SideNetworkTrainer
    scores: dict
    texts: list
    second: list | None
    labels: np.ndarray
    prediction: dict
    values: dict


def train(
    folder,
    kind="uniform",
    loss="squared-error",
    readout="mean",
    pairs=False,
    backbones=BACKBONES,
    own=OWN,
):
    """A small run without a clock: records of several backbones, a trained side network, and its
    file.
    """
    specs = {name: catalogue.find(name, own) for name in backbones}
    configs = {name: catalogue.config_of(spec) for name, spec in specs.items()}
    sampled = taps.sample({n: catalogue.depth_of(c) for n, c in configs.items()})
    vectors = {name: [0, *layers] for name, layers in sampled.items()}
    config, max_tokens = SideNetworkConfig(bottleneck=8, dropout=0.1), 12
    shape = shape_for(
        config, len(vectors[backbones[0]]) - 1, {n: c["hidden_size"] for n, c in configs.items()}, 3
    )
    (texts, labels), (held, held_labels) = questions(120, 1), questions(90, 2)
    second = [questions(1, i + 9)[0][0] for i in range(210)] if pairs else None
    streams = {name: np.random.default_rng(i + 50) for i, name in enumerate(backbones)}
    notes = notes_for(
        specs,
        vectors,
        CLASSES,
        pairs=pairs,
        heads=streams if kind == "random-head" else {},
        readout=readout,
        backbone_prediction=kind,
        loss=loss,
        max_tokens=str(max_tokens),
    )
    uploads, held_out = {}, {}
    for name, spec in specs.items():
        tokens = tokenise(spec, texts + held, second, max_tokens)
        pooled = compute(spec, tokens, readout)
        names = compute(spec, tokenise(spec, CLASSES, max_tokens=max_tokens), readout)[:, -1]
        y_b = backbone_prediction(kind, pooled[:, -1], 3, names, streams[name])
        targets = difference(labels, y_b[:120])
        if loss == "cross-entropy":
            targets = np.concatenate([targets + y_b[:120], y_b[:120]], axis=1)
        uploads[name] = encode(
            Activations(pooled[:120, vectors[name]], targets, np.arange(120)), "float16"
        )
        held_out[name] = HeldOut(pooled[120:, vectors[name]], y_b[120:], held_labels)
    tuning = SideNetworkTrainer(shape, config, Training(3e-3, 0.01, loss), held_out, 0)
    for name, data in uploads.items():
        tuning.ingest(name, data)
    rng = np.random.default_rng(0)
    for _ in range(80):
        tuning.step(rng.choice(120 * len(specs), 32, replace=False).tolist())
    (folder / "model").mkdir(parents=True)
    tuning.save_model(folder / "model" / "side_network.safetensors", **notes)
    return Trained(
        folder,
        tuning,
        tuning.evaluate(),
        held,
        second and second[120:],
        held_labels,
        {name: h.prediction for name, h in held_out.items()},
        {name: h.values for name, h in held_out.items()},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs") / "plain")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "cross-entropy", "readout": "last"},
        {"kind": "label-names"},
        {"kind": "random-head", "readout": "first"},
        {"kind": "random-head", "loss": "cross-entropy"},
        {"kind": "label-names", "pairs": True},
    ],
)
def test_gives_exactly_the_accuracy_that_training_reported(tmp_path, settings):
    run = train(tmp_path / "run", **settings)
    for backbone, reported in run.scores.items():
        predictor = SidePredictor.load(run.folder, backbone)
        labels, scores = predictor.predict(run.texts, run.second)
        assert np.mean([CLASSES.index(label) for label in labels] == run.labels) == reported
        with torch.no_grad():
            y_s = run.tuning.averaged(torch.from_numpy(run.values[backbone]), backbone).numpy()
        y_b = run.prediction[backbone]
        expected = y_b + y_s if "loss" not in settings else np.log(np.maximum(y_b, 1e-6)) + y_s
        assert scores.shape == (90, 3) and scores.dtype == np.float32
        assert np.allclose(scores, expected, atol=2e-5)
        assert labels == [CLASSES[c] for c in scores.argmax(axis=1)]
    if not settings.keys() & {
        "pairs",
        "readout",
    }:  # a random backbone tells texts apart by their mean alone
        assert max(run.scores.values()) > 0.6


def test_squared_error_scores_add_up_to_about_one(trained):
    _, scores = SidePredictor.load(trained.folder, "random-bert").predict(trained.texts)
    assert np.allclose(scores.sum(axis=1), 1, atol=0.2)


def test_the_file_alone_is_enough_and_texts_may_come_one_by_one(trained):
    file = trained.folder / "model" / "side_network.safetensors"
    predictor = SidePredictor.load(str(file), "mine")  # without the scenario's definition of `mine`
    labels, scores = predictor.predict(trained.texts)
    for index in range(5):
        label, score = predictor.predict([trained.texts[index]])
        assert label == [labels[index]] and np.allclose(score[0], scores[index], atol=1e-5)
    assert predictor.predict([])[0] == [] and predictor.predict([])[1].shape == (0, 3)
    assert predictor.class_names == CLASSES


def test_what_training_did_not_have_is_refused(trained, tmp_path):
    with pytest.raises(
        InferenceError, match="'minilm'; it was with: mine, random-bert, random-llama"
    ):
        SidePredictor.load(trained.folder, "minilm")
    with pytest.raises(
        InferenceError, match=r"no side network in .*a finished run that was not --dry leaves one"
    ):
        SidePredictor.load(tmp_path, "mine")
    with pytest.raises(InferenceError, match="trained on single texts: leave second_texts out"):
        SidePredictor.load(trained.folder, "mine").predict(["a"], ["b"])
    paired = train(tmp_path / "pairs", pairs=True, backbones=("mine",))
    with pytest.raises(InferenceError, match="trained on pairs: give second_texts"):
        SidePredictor.load(paired.folder, "mine").predict(["a"])


@pytest.mark.parametrize(
    "damage", [lambda d: d[:50], lambda d: b"", lambda d: b"\x80\x04." + d, lambda d: d[:-8]]
)
def test_a_damaged_file_is_named(trained, tmp_path, damage):
    file = tmp_path / "side_network.safetensors"
    file.write_bytes(damage((trained.folder / "model" / "side_network.safetensors").read_bytes()))
    with pytest.raises(InferenceError, match="is not a side network of a run, or it is damaged"):
        SidePredictor.load(file, "mine")


def test_other_weights_than_the_runs_are_refused(trained):
    other = {"mine": {**OWN["mine"], "seed": 4}}
    with pytest.raises(InferenceError, match="the weights or the depth found here are not those"):
        SidePredictor.load(trained.folder, "mine", own=other)
    assert SidePredictor.load(trained.folder, "mine", own=OWN).predict(["which king"])[0]


def test_a_model_that_was_moved_is_found_by_its_new_path(tmp_path):
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "which",
        "was",
        "it",
        *(word for words in ENTITIES for word in words),
        *"abcdef",
    ]
    torch.manual_seed(0)
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    BertModel(BertConfig(vocab_size=len(words), **size)).save_pretrained(tmp_path / "here")
    BertWordPieceTokenizer({w: i for i, w in enumerate(words)}).save(
        str(tmp_path / "here" / "tokenizer.json")
    )
    run = train(tmp_path / "run", backbones=("m",), own={"m": {"path": str(tmp_path / "here")}})
    expected = SidePredictor.load(run.folder, "m").predict(run.texts)[1]
    (tmp_path / "here").rename(tmp_path / "there")
    with pytest.raises(catalogue.BackboneError, match=r"no model in .*here"):
        SidePredictor.load(run.folder, "m")
    moved = SidePredictor.load(run.folder, "m", own={"m": {"path": str(tmp_path / "there")}})
    assert np.array_equal(moved.predict(run.texts)[1], expected)


def test_label_names_alone_would_be_the_softmax_of_cosines(tmp_path):
    run = train(tmp_path / "run", kind="label-names", backbones=("random-bert",))
    spec = catalogue.find("random-bert")
    names, texts = (
        compute(spec, tokenise(spec, t, max_tokens=12), "mean")[:, -1] for t in (CLASSES, run.texts)
    )
    cosines = (texts / np.linalg.norm(texts, axis=1)[:, None]) @ (
        names / np.linalg.norm(names, axis=1)[:, None]
    ).T
    assert np.allclose(
        scipy.special.softmax(cosines / 0.05, axis=1), run.prediction["random-bert"], atol=1e-4
    )


def test_the_notes_are_plain_json_text(trained):
    notes = SidePredictor.load(trained.folder, "mine").notes
    assert json.loads(json.dumps(notes)) == notes and notes["max_tokens"] == "12"
