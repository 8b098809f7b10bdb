"""Decoders that say what comes next: tokens of prompts and responses, losses beside transformers'
own, what is trained, and the vocabulary's cost beside counted passes.
"""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from learning.backbones import catalogue, responses
from learning.backbones.catalogue import BackboneError
from learning.backbones.huggingface import hf_config
from learning.backbones.loading import load_model
from learning.backbones.tokens import Tokens
from learning.backbones.vocabulary_head import VocabularyHead
from learning.cost.meter import CostMeter
from learning.cost.vocabulary import Vocabulary, kv_cache_bytes, vocabulary_of
from learning.federated.language_model import TrainableLanguageModel, score_texts
from learning.federated.local_training import LocalTraining, train
from learning.federated.peft_format import save_peft
from learning.next_token.replies import replies, speaking_model

LLAMA = catalogue.find("random-llama")
PROMPTS = ["how are you", "who", "tell me of the house by the river and of its cat"]
SAID = ["fine", "nobody at all", "it sleeps"]
TEMPLATE = "ask {prompt} reply {response}"


def tokens(max_tokens: int = 32) -> Tokens:
    return responses.responses(LLAMA, TEMPLATE, PROMPTS, SAID, max_tokens)


def of_transformers(spec):
    """transformers' own language model with the numbers of ours."""
    own = load_model(spec)
    whole = AutoModelForCausalLM.from_config(hf_config(catalogue.config_of(spec)))
    whole.model.load_state_dict(own.state_dict())
    head = VocabularyHead(spec, own)
    with torch.no_grad():
        whole.lm_head.weight.copy_(head.weight)
    return whole.eval(), own, head


def test_a_response_is_marked_from_its_first_token_to_the_end_of_the_text():
    made = tokens()
    for ids, segments, reply in zip(made.ids, made.segments, SAID, strict=True):
        count = len(reply.split()) + 1  # and the end
        assert segments.tolist() == [0] * (len(ids) - count) + [1] * count
        assert ids[-1] == responses.end_of_text(LLAMA)
    assert made.said_lengths().tolist() == [len(reply.split()) + 1 for reply in SAID]
    assert made.is_cut == [False, False, False]


def test_a_long_prompt_loses_words_and_a_long_response_its_end():
    said = ["a b c d e f g h i j k l m n"]
    (ids,), (segments,) = (
        getattr(responses.responses(LLAMA, TEMPLATE, ["p " * 30], said, 12), name)
        for name in ("ids", "segments")
    )
    assert len(ids) == 12 and segments.sum() == 6  # half of them, without an end
    assert ids[-1] != responses.end_of_text(LLAMA)
    short = responses.responses(LLAMA, TEMPLATE, ["p " * 30], ["yes"], 12)
    assert len(short.ids[0]) == 12 and short.segments[0].sum() == 2 and short.is_cut == [True]


def test_plain_text_is_said_from_its_second_token_on():
    made = responses.responses(LLAMA, TEMPLATE, [""], ["one two three"], 16)
    assert made.segments[0].tolist() == [0, 1, 1, 1, 1]
    alone = Tokens([np.arange(2, 7, dtype=np.int32)])
    assert alone.said(0).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{prompt}", "{response} stands there 0 times"),
        ("{response} after {prompt}", "before"),
        ("{prompt}{prompt}{response}", "2 times"),
        ("chat", None),
    ],
)
def test_templates_that_cannot_be_are_told(template, said):
    found = responses.why_unfit(template)
    assert (found is None) if said is None else said in found


def test_a_prompt_without_room_is_told():
    with pytest.raises(BackboneError, match="leaves no room for a prompt"):
        responses.responses(LLAMA, "a b c d e {prompt} f {response}", ["x"], ["y z"], 7)


def test_losses_are_those_of_transformers():
    whole, _, _ = of_transformers(LLAMA)
    model, made = TrainableLanguageModel(LLAMA, "lora"), tokens()
    found = score_texts(model, model.trainable(), made)
    for row, ids, segments in zip(found, made.ids, made.segments, strict=True):
        ids_1T = torch.from_numpy(ids.astype(np.int64))[None]
        labels = ids_1T.clone()
        labels[0, segments == 0] = -100
        with torch.no_grad():
            loss = whole(input_ids=ids_1T, labels=labels).loss
        assert row[2] == segments.sum()
        assert row[0] == pytest.approx(float(loss) * row[2], rel=1e-4)


def test_padding_changes_no_score():
    model, made = TrainableLanguageModel(LLAMA, "lora"), tokens()
    together = score_texts(model, model.trainable(), made)
    for i in range(len(made)):
        alone = score_texts(model, model.trainable(), Tokens([made.ids[i]], [made.segments[i]]))
        assert np.allclose(alone[0], together[i], rtol=1e-5)


def test_shares_of_the_batches_are_together_the_scores_to_the_bit(monkeypatch):
    monkeypatch.setattr("learning.federated.language_model._AT_ONCE", 5)  # several batches
    model, made = TrainableLanguageModel(LLAMA, "lora"), tokens()
    whole = score_texts(model, model.trainable(), made)
    parts = [score_texts(model, model.trainable(), made, (k, 2)) for k in range(2)]
    assert np.array_equal(sum(parts), whole)
    assert all(part.any() and not part.all() for part in parts)


@pytest.mark.parametrize("kind", ["lora", "adapter", "full"])
def test_training_makes_what_is_said_likelier(kind):
    model, made = TrainableLanguageModel(LLAMA, kind), tokens()
    start = model.trainable()
    before = score_texts(model, start, made)[:, 0].sum()
    settings = LocalTraining(epochs=5, batch=2, learning_rate=5e-3, dropout=0.0)
    after = train(model, start, made, np.zeros(3, int), settings, 0)
    assert score_texts(model, after.state, made)[:, 0].sum() < before - 1
    assert ("backbone.embed_tokens.weight" in start) == (kind == "full")


def test_tied_weights_stay_one_tensor_in_twins():
    model = TrainableLanguageModel(LLAMA, "full")
    twin = model.twin()
    assert model.head.weight is model.backbone.get_input_embeddings().weight
    assert twin.head.weight is twin.backbone.get_input_embeddings().weight
    assert twin.head.weight is not model.head.weight
    frozen = TrainableLanguageModel(LLAMA, "lora")
    assert frozen.twin().head.weight is frozen.head.weight


def test_what_is_no_language_model_is_told():
    with pytest.raises(BackboneError, match="no head that says the next word"):
        TrainableLanguageModel(catalogue.find("random-bert"), "lora")
    with pytest.raises(BackboneError, match="nothing to train"):
        TrainableLanguageModel(LLAMA, "head")


def test_lora_is_read_by_the_peft_library(tmp_path):
    from peft import PeftModel

    model = TrainableLanguageModel(LLAMA, "lora", rank=4, alpha=8)
    draw = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=draw) / 10 for n, t in model.trainable().items()}
    save_peft(model, state, tmp_path / "peft")
    whole, _, _ = of_transformers(LLAMA)
    loaded = PeftModel.from_pretrained(whole, tmp_path / "peft").eval()
    ids_BT = torch.randint(2, 2000, (2, 9), generator=draw)
    model.load_trainable(state)
    with torch.no_grad():
        theirs = loaded(input_ids=ids_BT).logits[:, :-1].flatten(0, 1)
        assert torch.allclose(theirs, model(ids_BT, torch.ones_like(ids_BT)), atol=1e-4)
        bare = whole.unload() if hasattr(whole, "unload") else of_transformers(LLAMA)[0]
        assert not torch.allclose(bare(input_ids=ids_BT).logits[:, :-1].flatten(0, 1), theirs)


def test_replies_padded_on_the_left_are_those_of_each_prompt_alone():
    whole, own, head = of_transformers(LLAMA)
    speaking, made = speaking_model(LLAMA, own, head), tokens()
    together = replies(speaking, LLAMA, made, 6)
    for i in range(len(made)):
        prompt = made.ids[i][: int(np.argmax(made.said(i)))]
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        for _ in range(6):  # greedily, by hand and without a cache
            with torch.no_grad():
                following = whole(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            ids = torch.cat([ids, following[None, None]], dim=1)
            if int(following) == responses.end_of_text(LLAMA):
                break
        assert together[i] == responses.said(LLAMA, ids[0, len(prompt) :].tolist())


def counted(run, *ignored) -> CostMeter:
    meter = CostMeter()
    meter.ignore(ignored)
    with torch.device("meta"), meter:
        run()
    return meter


def test_the_vocabulary_costs_what_counted_passes_do():
    tokens_M, width, words = 40, 24, 500
    of = Vocabulary(width, words)
    with torch.device("meta"):
        weight_VD = torch.empty(words, width)
        h_MD = torch.empty(tokens_M, width, requires_grad=True)
        said_M = torch.empty(tokens_M, dtype=torch.long)

    def backward():
        F.cross_entropy(h_MD @ weight_VD.T, said_M).backward()

    forward = counted(lambda: h_MD.detach() @ weight_VD.T, weight_VD, h_MD)
    assert of.forward(tokens_M).flop == forward.flop
    assert of.forward(tokens_M).peak_bytes == forward.peak_bytes
    trained = counted(backward, weight_VD, h_MD, said_M)
    assert of.gradient(tokens_M).flop == of.training(tokens_M, False).flop == trained.flop
    assert trained.peak_bytes == pytest.approx(of.gradient(tokens_M).peak_bytes, rel=0.1)
    weight_VD.requires_grad_()
    assert of.training(tokens_M, True).flop == counted(backward, weight_VD, h_MD, said_M).flop


def test_a_cache_of_keys_and_values_holds_those_of_shared_heads_alone():
    config = catalogue.config_of(catalogue.find("smollm2"))
    assert vocabulary_of(config) == Vocabulary(576, 49152)
    # 2 (keys, values) x 30 layers x 3 heads of 64 x 10 tokens x 2 bytes
    assert kv_cache_bytes(config, 10, 2) == 2 * 30 * 3 * 64 * 10 * 2


@pytest.mark.fetched
@pytest.mark.parametrize("name", ["minilm", "smollm2"])
def test_a_packaged_backbone_is_computed_by_its_own_configuration(name):
    from learning.backbones import assets
    from learning.backbones.convert import model_dir

    try:
        folder = model_dir(name)
    except assets.AssetMissing as error:
        pytest.skip(str(error))
    spec = catalogue.find(name)
    own = dataclasses.replace(spec, kind="path", source=str(folder), config=None)
    ours, theirs = (hf_config(catalogue.config_of(one)).to_dict() for one in (spec, own))
    told = ("rope_parameters", "rms_norm_eps", "layer_norm_eps", "hidden_act", "head_dim")
    for key in (*told, "max_position_embeddings", "num_key_value_heads"):
        assert ours.get(key) == theirs.get(key), key
