"""The frozen backbone against plain transformers calls: cuts, readouts, pairs, and the same bits in
any company.
"""

import numpy as np
import pytest
import torch

from learning.backbones import catalogue
from learning.backbones.backbone import Backbone
from learning.backbones.tokens import Tokens


def states_of(backbone, tokens, index):
    """Hidden states [layers + 1, T, D] of one text alone, straight from transformers: no padding,
    no mask.
    """
    inputs = {"input_ids": torch.from_numpy(tokens.ids[index].astype(np.int64))[None]}
    if tokens.segments is not None and backbone._segments:
        inputs["token_type_ids"] = torch.from_numpy(tokens.segments[index].astype(np.int64))[None]
    with torch.no_grad():
        return torch.cat(backbone.model(**inputs, output_hidden_states=True).hidden_states).numpy()


BY_HAND = {
    "first": lambda h_LTD: h_LTD[:, 0],
    "last": lambda h_LTD: h_LTD[:, -1],
    "mean": lambda h_LTD: h_LTD.mean(1),
}


@pytest.mark.parametrize("readout", BY_HAND)
def test_readouts_are_the_first_the_last_real_and_the_mean_token(backbone, some_tokens, readout):
    tokens = some_tokens(backbone, [5, 1, 17, 9, 12])
    got = backbone.readouts(tokens, readout)
    assert got.shape == (5, backbone.layers + 1, backbone.hidden_size) and got.dtype == np.float32
    for index in range(len(tokens)):
        expected = BY_HAND[readout](states_of(backbone, tokens, index))
        scale = np.abs(expected).max(
            axis=-1, keepdims=True
        )  # a decoder's residual stream has numbers in the hundreds
        assert np.all(np.abs(got[index] - expected) <= 2e-5 * scale)


def test_a_decoder_reads_left_to_right_and_an_encoder_both_ways(get, some_tokens):
    for name, causal in (("random-llama", True), ("random-bert", False)):
        backbone = get(name)
        tokens = some_tokens(backbone, [9])
        longer = Tokens([np.append(tokens.ids[0], [7, 8, 9]).astype(np.int32)])
        first, longer_first = (backbone.readouts(t, "first")[0, -1] for t in (tokens, longer))
        assert np.allclose(first, longer_first, atol=1e-5) == causal
        # what comes before the last token reaches its vector in both
        other = Tokens([np.append([3], tokens.ids[0][1:]).astype(np.int32)])
        last, other_last = (backbone.readouts(t, "last")[0, -1] for t in (tokens, other))
        assert not np.allclose(last, other_last, atol=1e-5)


def test_an_unknown_readout_is_refused(get, some_tokens):
    with pytest.raises(ValueError, match="readout 'middle' is not one of first, last, mean"):
        get("random-bert").readouts(some_tokens(get("random-bert"), [3]), "middle")


def test_frozen(backbone):
    assert not any(module.training for module in backbone.model.modules())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in backbone.model.parameters())


def test_nothing_is_recorded_for_a_backward_pass(get, some_tokens):
    backbone, saved = get("random-bert"), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        backbone.readouts(some_tokens(backbone, [4]))
    assert not saved


@pytest.mark.parametrize(
    ("whole", "cut", "layers"),
    [
        ("random-bert", "random-bert-l1", 1),
        ("random-llama", "random-llama-l2", 2),
        pytest.param("minilm", "minilm-l2", 2, marks=pytest.mark.fetched),
        pytest.param("minilm", "minilm-l4", 4, marks=pytest.mark.fetched),
        pytest.param("smollm2-l4", "smollm2-l2", 2, marks=pytest.mark.fetched),
    ],
)
def test_a_cut_backbone_is_the_prefix_of_the_whole(get, some_tokens, whole, cut, layers):
    whole, cut = get(whole), get(cut)
    tokens = some_tokens(whole, [3, 9, 17])
    a, b = whole.readouts(tokens, "last"), cut.readouts(tokens, "last")
    assert cut.layers == layers and b.shape[1] == layers + 1
    assert np.array_equal(a[:, :layers], b[:, :layers])
    expected = a[:, layers]
    if hasattr(
        cut.model, "norm"
    ):  # a decoder's last output has passed its final norm, wherever it ends
        with torch.no_grad():
            expected = cut.model.norm(torch.from_numpy(expected)).numpy()
    assert np.allclose(b[:, layers], expected, rtol=1e-5, atol=1e-5)
    stored = whole.model.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in cut.model.state_dict().items())


def test_pairs_use_segments_where_the_model_has_them(get, some_tokens):
    bert, llama = get("random-bert"), get("random-llama")
    for backbone, matters in ((bert, True), (llama, False)):
        pair = some_tokens(backbone, [8, 5], pairs=True)
        single = Tokens(pair.ids)
        assert (not np.array_equal(backbone.readouts(pair), backbone.readouts(single))) == matters
    pair = some_tokens(bert, [8, 5], pairs=True)
    for index in range(2):
        assert np.allclose(
            bert.readouts(pair)[index], states_of(bert, pair, index).mean(1), atol=1e-5
        )


def test_the_same_bits_whatever_the_company(backbone, some_tokens):
    readout = "last" if "llama" in backbone.model.config.model_type else "mean"
    rng = np.random.default_rng(1)
    tokens = some_tokens(backbone, rng.integers(1, 17, 64))
    together = backbone.readouts(tokens, readout)
    for count in (1, 7, 64):
        chosen = rng.permutation(len(tokens))[:count]
        part = Tokens([tokens.ids[i] for i in chosen])
        assert np.array_equal(backbone.readouts(part, readout), together[chosen])


def test_progress_ends_at_the_number_of_texts(get, some_tokens):
    backbone, seen = get("random-bert"), []
    backbone.readouts(some_tokens(backbone, [4] * 21), progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 21


def test_a_random_backbone_follows_from_its_seed_and_leaves_torchs_generator_alone():
    own = {"a": {"random": dict(catalogue.config_of(catalogue.find("random-bert"))), "seed": 1}}
    own["b"] = {**own["a"], "seed": 2}
    torch.manual_seed(5)
    first = [
        next(Backbone(catalogue.find(name, own)).model.parameters()) for name in ("a", "a", "b")
    ]
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_the_longest_text_that_the_model_can_read(get, some_tokens):
    backbone = get("random-bert")
    longest = catalogue.config_of(backbone.spec)["max_position_embeddings"]
    tokens = some_tokens(backbone, [longest, longest - 3])
    assert np.isfinite(backbone.readouts(tokens)).all()


def test_a_text_as_long_as_positions_that_are_no_multiple_of_eight(some_tokens):
    config = {**catalogue.config_of(catalogue.find("random-bert")), "max_position_embeddings": 30}
    backbone = Backbone(catalogue.find("mine", {"mine": {"random": config}}))
    tokens = some_tokens(backbone, [30, 27, 3])
    got = backbone.readouts(tokens)
    assert np.allclose(got[0], states_of(backbone, tokens, 0).mean(1), atol=1e-5)


def test_threads_that_share_a_model_read_each_its_own_text(some_tokens):
    from concurrent.futures import ThreadPoolExecutor

    backbone = Backbone(
        catalogue.find("random-bert")
    )  # of its own: the first passes of all threads begin at once
    texts = [some_tokens(backbone, [length], seed=length) for length in range(2, 34)]
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        together = list(pool.map(backbone.readouts, texts * 3))
    alone = [backbone.readouts(tokens) for tokens in texts]
    assert all(np.array_equal(got, alone[i % len(texts)]) for i, got in enumerate(together))
