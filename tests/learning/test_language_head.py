"""What a language model says next, and how a text is put to it: prompts and the tokens of words."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from learning.backbones import catalogue
from learning.backbones.assets import AssetMissing
from learning.backbones.backbone import Backbone
from learning.backbones.catalogue import BackboneError, BackboneSpec
from learning.backbones.language_head import WordHead, require_language_model
from learning.backbones.prompts import filled, first_tokens, prompts, why_unfit
from learning.backbones.tokens import tokenise, tokenizer_of
from learning.data import texts
from learning.data.label_texts import shipped, shipped_template
from learning.side.prediction_difference import backbone_prediction, verbalised

SAID = [
    "[PAD]",
    "[UNK]",
    "red",
    "green",
    "blue",
    "Colour",
    ":",
    "sky",
    "leaf",
    "is",
    "dark",
    "{",
    "}",
]
WORDS = {"r": "red", "g": "green dark", "b": "blue"}


def own(folder, **changes) -> BackboneSpec:
    return catalogue.find("mine", {"mine": {"path": str(folder), **changes}})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_words_get_the_logits_that_the_whole_language_model_gives_them(kind, tied, own_model):
    from transformers import AutoModelForCausalLM

    head = "LMHeadModel" if kind == "gpt2" else "ForCausalLM"
    folder = own_model(kind, head, words=SAID, tie_word_embeddings=tied)
    spec = own(folder)
    require_language_model(spec)
    template, said = "{text}\nColour:", ["leaf is", "sky is dark sky is dark sky is dark"]
    tokens = prompts(spec, template, said, max_tokens=9)
    assert tokens.lengths().tolist() == [4, 9]  # two of text and two of template; cut, but whole
    assert tokens.ids[1][-2:].tolist() == [SAID.index("Colour"), SAID.index(":")]
    ids = first_tokens(spec, template, WORDS)
    assert ids.tolist() == [SAID.index(word) for word in ("red", "green", "blue")]

    whole = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        asked = [whole(input_ids=torch.tensor([ids.tolist()])).logits[0, -1] for ids in tokens.ids]
    expected = torch.stack(asked)[:, ids].numpy()
    last = Backbone(spec).readouts(tokens, "last")[:, -1]
    got = WordHead(spec, ids)(last)
    assert np.allclose(got, expected, atol=1e-6)

    # by hand: the last state times the rows of these words in the output embedding
    tensors = whole.state_dict()
    name = {"gpt2": "transformer.wte", "llama": "model.embed_tokens"}[kind] if tied else "lm_head"
    assert np.allclose(got, last @ tensors[f"{name}.weight"][ids].numpy().T, atol=1e-6)
    y_b = backbone_prediction("verbaliser", last, 3, logits_NC=got)
    assert np.allclose(y_b, softmax(expected, axis=1), atol=1e-6)


def test_calibration_takes_off_what_neutral_texts_make_likely():
    logits = np.log([[0.6, 0.2, 0.2], [0.3, 0.6, 0.1]])
    neutral = np.log([[0.6, 0.2, 0.2]])
    expected = [[1 / 3, 1 / 3, 1 / 3], [0.5 / 4, 3 / 4, 0.5 / 4]]
    expected[1] = np.array([0.3 / 0.6, 0.6 / 0.2, 0.1 / 0.2]) / (0.5 + 3 + 0.5)
    assert np.allclose(verbalised(logits, neutral), expected)
    twice = np.concatenate([neutral, neutral + 5.0])  # a constant a text is nothing to a softmax
    assert np.allclose(verbalised(logits + 7.0, twice), expected)
    assert np.allclose(verbalised(logits), np.exp(logits))
    soft = verbalised(logits, temperature=2.0)
    assert np.allclose(soft[1], np.sqrt([0.3, 0.6, 0.1]) / np.sqrt([0.3, 0.6, 0.1]).sum())
    with pytest.raises(ValueError, match="calibrated-verbaliser needs the logits"):
        backbone_prediction("calibrated-verbaliser", logits, 3, logits_NC=logits)


@pytest.mark.parametrize("config", [{}, {"tie_word_embeddings": False}])
def test_a_random_model_says_words_too_and_the_same_ones_again(config):
    base = dict(catalogue.find("random-llama").config) | config
    spec = catalogue.find("r", {"r": {"random": base, "seed": 4}})
    states = np.random.default_rng(0).normal(size=(5, 48)).astype(np.float32)
    once, again = (WordHead(spec, np.array([7, 9]))(states) for _ in range(2))
    assert np.array_equal(once, again) and once.std() > 0
    rows = Backbone(spec).model.get_input_embeddings().weight[[7, 9]].numpy()
    assert np.allclose(once, states @ rows.T, atol=1e-6) == ("tie_word_embeddings" not in config)


def test_an_encoder_says_no_word_and_a_decoder_without_its_output_embedding_neither(own_model):
    for name in ("random-bert", "minilm", "roberta-base", "distilbert-cased"):
        with pytest.raises(BackboneError, match=r"model has no head that says the next word.*take"):
            require_language_model(catalogue.find(name))
    for name in ("smollm2", "random-llama", "opt-1.3b"):
        require_language_model(catalogue.find(name))
    bare = own(own_model("llama", "Model", words=SAID, tie_word_embeddings=False))
    with pytest.raises(BackboneError, match=r"no output embedding \(lm_head.weight\).*save the"):
        require_language_model(bare)
    require_language_model(own(own_model("gpt2", "Model", words=SAID)))  # tied: there it is


def test_two_words_that_begin_alike_are_named(own_model):
    spec = own(own_model("gpt2", "LMHeadModel", words=SAID))
    alike = {"r": "red", "dark": "red dark"}
    with pytest.raises(BackboneError, match="'red' of 'r' and 'red dark' of 'dark' begin with the"):
        first_tokens(spec, "{text}:", alike)
    with pytest.raises(BackboneError, match="its end changes when 'red' follows"):
        first_tokens(own(own_model("llama", "ForCausalLM")), "{text}:", {"r": "red"})  # adds [SEP]


@pytest.mark.parametrize(
    ("template", "of_pairs", "what"),
    [
        ("Colour:", None, "has no {text}"),
        ("{text} {text}", None, "has {text} 2 times"),
        ("{Text}", None, "has no {text}"),
        ("{text} {second_text}", False, "these texts are no pairs"),
        ("{text}:", True, "has no {second_text}"),
        ("{second_text} {text}:", True, None),
        ("{text}{", None, None),
    ],
)
def test_what_is_wrong_with_a_template_is_said(template, of_pairs, what):
    found = why_unfit(template, of_pairs)
    assert (found is None) == (what is None) and (what or "") in (found or "")


def test_braces_of_texts_and_templates_stay_as_they_are():
    assert filled("{x} {text} }{", "{second_text} \\1 {text}") == "{x} {second_text} \\1 {text} }{"
    assert filled("{second_text}|{text}", "a", "b") == "b|a"


def test_a_prompt_is_cut_in_its_text_alone(own_model):
    spec = own(own_model("gpt2", "LMHeadModel", words=SAID))
    template, said = "{ {text} } Colour:", ["sky " * 30, "leaf", ""]
    whole = [filled(template, text) for text in said]
    tokens = prompts(spec, template, said, max_tokens=12)
    assert tokens.lengths().tolist() == [12, 5, 4]
    for ids, text in zip(tokens.ids[1:], whole[1:], strict=True):
        assert ids.tolist() == tokenise(spec, [text]).ids[0].tolist()
    both = prompts(spec, "{text} : {second_text} :", said[:1], ["leaf " * 30], max_tokens=12)
    assert both.ids[0].tolist().count(SAID.index("sky")) == 5
    assert both.ids[0].tolist().count(SAID.index("leaf")) == 5
    with pytest.raises(BackboneError, match="4 leaves no room for text beside the 4 tokens"):
        prompts(spec, template, said, max_tokens=4)
    short = prompts(catalogue.find("random-llama"), "{text}\nColour:", ["a b c d e f"], None, 5)
    assert short.lengths().tolist() == [5]
    last = tokenise(catalogue.find("random-llama"), ["Colour:"]).ids[0][-1]
    assert short.ids[0][-1] == last


@pytest.mark.parametrize("info", texts.names(), ids=lambda info: info.name)
def test_every_class_has_a_word_and_every_data_set_a_template(info):
    if info.asset is None or info.has_responses:
        pytest.skip("of an installed package, or without classes to predict")
    words, template = shipped(info.name, "label_words"), shipped_template(info.name)
    assert set(words) == set(shipped(info.name)) and len(set(words.values())) == info.classes
    assert why_unfit(template, "{second_text}" in template) is None
    assert template == template.strip()


@pytest.mark.fetched
def test_smollm2_tells_all_words_of_ours_apart():
    try:
        tokenizer_of(spec := catalogue.find("smollm2"))
    except AssetMissing as missing:
        pytest.skip(str(missing))
    for info in texts.names():
        if words := shipped(info.name, "label_words"):
            assert len(first_tokens(spec, shipped_template(info.name), words)) == len(words)
