"""Side-tuning on next-token tasks: gradients at the last state, what can be told of a difference,
moves that are solved, and payloads.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from learning.backbones import catalogue, responses
from learning.backbones.backbone import Backbone
from learning.backbones.vocabulary_head import VocabularyHead
from learning.next_token.choices import chosen_counts, chosen_places, form_of
from learning.next_token.difference import (
    curvature,
    gradient_of,
    losses,
    negative_gradient,
    told,
    whole,
)
from learning.next_token.payload import PlaceShape, decode, encode, encoded_sizes
from learning.next_token.replies import nearness, replies, speaking_model
from learning.next_token.side import NextTokenSide, Records, _Part, solve
from learning.next_token.speaking import SideTuned, save_moves
from learning.next_token.states import stored_states, token_states
from learning.side.activation_store import ActivationStore

SPEC = catalogue.find("random-llama")
BACKBONE = Backbone(SPEC)
HEAD = VocabularyHead(SPEC, BACKBONE.model)
LAYERS = (1, 3)


def texts(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    words = [f"w{i}" for i in range(12)]
    asked = [" ".join(rng.choice(words, rng.integers(2, 6))) for _ in range(count)]
    said = [" ".join(reversed(one.split()[:3])) for one in asked]
    return responses.responses(SPEC, "{prompt} : {response}", asked, said, 24)


def records(tokens, side=None):
    """What a device would send of these texts, and the tokens that follow."""
    states = token_states(BACKBONE, tokens, LAYERS)
    x = torch.from_numpy(states.values).flatten(1).float()
    last, said = torch.from_numpy(states.last), torch.from_numpy(states.said)
    at = (side or NextTokenSide()).moved("b", x, last)
    return Records(x, last, negative_gradient(HEAD, at, said)), said


def test_states_are_those_at_the_places_before_the_response():
    tokens = texts(5)
    states = token_states(BACKBONE, tokens, LAYERS)
    row = 0
    for i, ids in enumerate(tokens.ids):
        ids_1T = torch.from_numpy(ids.astype(np.int64))[None]
        found = BACKBONE.states(ids_1T, torch.ones_like(ids_1T))
        for place in np.flatnonzero(tokens.segments[i]):
            assert states.said[row] == ids[place]
            for number, layer in enumerate(LAYERS):
                expected = found[layer][0, place - 1].numpy()
                assert np.allclose(states.values[row, number], expected, atol=2e-2)
            row += 1
    assert row == len(states) == states.ends[-1]
    some = states.of([3, 1])
    own = states.said[states.ends[2] : states.ends[3]]
    assert some.said[: some.ends[0]].tolist() == own.tolist()


def test_stored_states_are_those_that_were_computed(tmp_path):
    whole, store = texts(90), ActivationStore(tmp_path)
    firsts = {tuple(ids): i for i, ids in reversed([*enumerate(whole.ids)])}  # no text twice
    tokens = whole.of(sorted(firsts.values())[:60])
    assert len(tokens) == 60
    plain = token_states(BACKBONE, tokens, LAYERS)
    told, read = [], []

    def spread(function, pieces):
        for piece in pieces:
            read.append(len(piece[1]))
            yield function(*piece)

    def stored(some):
        told.clear()
        return stored_states(SPEC, some, LAYERS, store, spread, lambda *done: told.append(done))

    first = stored(tokens.of(range(40)))
    assert told[0] == (0, 40) and told[-1] == (40, 40) and sum(read) == 40
    both = stored(tokens)
    assert told[-1] == (20, 20) and sum(read) == 60
    again = stored(tokens)
    assert told == [(0, 0)] and sum(read) == 60
    for found, expected in ((first, plain.of(range(40))), (both, plain), (again, plain)):
        for name in ("values", "last", "said", "ends"):
            assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_the_gradient_is_what_the_difference_says_of_the_last_state():
    found, said = records(texts(6))
    delta_MV = whole(HEAD, found.last, said)
    assert torch.allclose(delta_MV.sum(dim=1), torch.zeros(len(said)), atol=1e-5)
    assert torch.allclose(found.g, delta_MV @ HEAD.weight, atol=1e-5)
    h_MD = found.last.clone().requires_grad_()
    F.cross_entropy(h_MD @ HEAD.weight.T, said, reduction="sum").backward()
    assert torch.allclose(found.g, -h_MD.grad, atol=1e-5)


@pytest.mark.parametrize("difference", ["gradient", "whole", "top-1", "top-16", "top-2048"])
def test_the_server_makes_the_gradient_of_a_difference(difference):
    found, said = records(texts(6))
    form = form_of(difference)
    numbers, words = told(HEAD, found.last, said, form)
    assert numbers.shape == (len(said), form.numbers(48, 2048))
    g = numbers if form.kind == "gradient" else gradient_of(HEAD, found.last, numbers, words)
    assert torch.allclose(g, found.g, atol=1e-5)


def test_the_largest_entries_are_those_and_tell_the_token():
    found, said = records(texts(6))
    delta_MV = whole(HEAD, found.last, said)
    numbers, words = told(HEAD, found.last, said, form_of("top-16"))
    assert torch.equal(delta_MV.gather(1, words), numbers)
    others = delta_MV.scatter(1, words, 0.0)
    assert (others.abs().amax(dim=1) <= numbers.abs().amin(dim=1)).all()
    assert torch.equal(words.gather(1, numbers.argmax(dim=1, keepdim=True))[:, 0], said)


def test_no_place_is_told_as_nothing():
    none, said = records(texts(1))[0].last[:0], torch.zeros(0, dtype=torch.long)
    for difference in ("gradient", "whole", "top-16"):
        numbers, words = told(HEAD, none, said, form_of(difference))
        assert numbers.shape == (0, form_of(difference).numbers(48, 2048))
        assert words is None or words.shape == numbers.shape


@pytest.mark.parametrize("text", ["top-0", "top-", "top-1.5", "Gradient", "", "random-8"])
def test_what_is_no_difference_is_told(text):
    with pytest.raises(ValueError, match="top-64"):
        form_of(text)


def test_places_of_a_response():
    draw = np.random.default_rng(0)
    assert chosen_places(5, "response", draw).tolist() == [0, 1, 2, 3, 4]
    assert chosen_places(5, "last", draw).tolist() == [4]
    assert chosen_places(0, "last", draw).tolist() == []
    found = [chosen_places(5, 2, np.random.default_rng(seed)).tolist() for seed in range(60)]
    assert {tuple(one) for one in found} == {(i, j) for i in range(5) for j in range(i + 1, 5)}
    assert chosen_places(2, 3, draw).tolist() == [0, 1]
    counts = np.array([0, 1, 5])
    for positions, expected in (("response", [0, 1, 5]), ("last", [0, 1, 1]), (3, [0, 1, 3])):
        assert chosen_counts(counts, positions).tolist() == expected
        assert [len(chosen_places(n, positions, draw)) for n in counts] == expected


def test_states_at_some_places_are_of_the_same_texts():
    states = token_states(BACKBONE, texts(4), LAYERS)
    last = states.at("last", [None] * 4)
    assert last.ends.tolist() == [1, 2, 3, 4]
    assert last.said.tolist() == states.said[states.ends - 1].tolist()
    assert np.array_equal(last.values, states.values[states.ends - 1])
    assert np.array_equal(last.last, states.last[states.ends - 1])


def test_the_curvature_is_the_mean_hessian_of_the_loss():
    found, said = records(texts(2))
    h_MD, said = found.last[:3], said[:3]

    def loss(h_D, y):
        return F.cross_entropy((h_D @ HEAD.weight.T)[None], y[None])

    each = [torch.func.hessian(loss)(h, y) for h, y in zip(h_MD, said, strict=True)]
    expected = torch.stack(each).mean(dim=0).double()
    assert torch.allclose(curvature(HEAD, h_MD), expected, atol=1e-6)


def test_what_a_move_gains_is_known_without_the_token():
    found, said = records(texts(30))
    part = _Part(found, HEAD, NextTokenSide(), "b")
    draw = torch.Generator().manual_seed(0)
    move = torch.randn(part.left_h.shape, generator=draw) / 5
    blocks = torch.arange(len(said)) // 50
    is_left = blocks % 10 == 5 if (blocks % 10 == 5).any() else torch.arange(len(said)) % 10 == 0
    left = said[is_left]
    before, after = (losses(HEAD, h, left)[0].sum() for h in (part.left_h, part.left_h + move))
    assert part.gained(move) == pytest.approx(float(before - after), rel=1e-3, abs=1e-3)


def test_each_round_makes_what_is_said_likelier_on_other_texts():
    train, test = texts(240), texts(60, seed=1)
    (held, said), side = records(test), NextTokenSide()
    found = [losses(HEAD, held.last, said)[0].mean()]
    for _ in range(3):
        side = solve(side, {"b": records(train, side)[0]}, {"b": HEAD})
        found.append(losses(HEAD, side.moved("b", held.x, held.last), said)[0].mean())
    assert len(side.moves["b"]) == len(side.chosen) == 3
    assert found[1] < found[0] - 0.5 and found[3] < found[2] < found[1]


def test_records_in_another_order_of_devices_solve_the_same_moves():
    first, second = (records(texts(150, seed))[0] for seed in (0, 1))
    both = [
        Records(*(torch.cat([getattr(one, f), getattr(other, f)]) for f in ("x", "last", "g")))
        for one, other in ((first, second), (second, first))
    ]
    one, other = (_Part(records_, HEAD, NextTokenSide(), "b") for records_ in both)
    # what is left out differs; sums over the rest are of nearly the same records
    assert one.n == other.n
    assert torch.allclose(one.mean, other.mean, atol=0.05)


def test_a_move_that_helps_nobody_is_none():
    found, _ = records(texts(40))
    blind = Records(found.x, found.last, torch.zeros_like(found.g))
    assert not solve(NextTokenSide(), {"b": blind}, {"b": HEAD}).moves


@pytest.mark.parametrize("wire", ["float32", "float16", "bfloat16", "int8", "int4"])
def test_payloads_are_as_long_as_is_charged_and_come_back(wire):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(7, 2, 48)).astype(np.float32)
    targets = rng.normal(size=(7, 48)).astype(np.float32) / 10
    for given, words in ((values, 0), (None, 0), (values, 2048), (None, 70_000)):
        shape = PlaceShape(2, 48, 48, words)
        which = rng.integers(0, words, targets.shape) if words else None
        data = encode(given, targets, which, shape, wire)
        assert len(data) == sum(encoded_sizes(wire, 7, shape, given is not None).values())
        found, back, said = decode(data, shape, wire)
        worst = {"float32": 0, "float16": 1e-3, "bfloat16": 1e-2, "int8": 1e-2, "int4": 0.1}[wire]
        assert np.abs(back - targets).max() <= worst * np.abs(targets).max() + 1e-9
        assert (found is None) == (given is None)
        assert (said is None) if which is None else np.array_equal(said, which)
        if given is not None:
            assert np.abs(found - values).max() <= worst * np.abs(values).max() + 1e-9


def test_an_entry_of_a_vocabulary_takes_as_few_bytes_as_its_words_need():
    for words, bytes_of_one in ((2**16, 2), (2**16 + 1, 4)):
        sizes = encoded_sizes("float16", 7, PlaceShape(2, 48, 5, words), False)
        assert sizes["targets"] == 7 * 5 * (2 + bytes_of_one)


def test_moves_plug_into_generate_and_come_back_from_their_file(tmp_path):
    train, test = texts(240), texts(4, seed=3)
    side = solve(NextTokenSide(), {"b": records(train)[0]}, {"b": HEAD})
    save_moves(side.tensors(), {"b": SPEC}, {"b": LAYERS}, tmp_path / "moves.safetensors")
    plain = replies(speaking_model(SPEC, BACKBONE.model, HEAD), SPEC, test, 4)
    other = Backbone(SPEC)
    model = speaking_model(SPEC, other.model, VocabularyHead(SPEC, other.model))
    SideTuned.from_pretrained(tmp_path / "moves.safetensors", "b").attach(model)
    moved = replies(model, SPEC, test, 4)
    assert moved != plain
    for i in range(len(test)):  # the first token by hand
        prompt = test.ids[i][: int(np.argmax(test.said(i)))]
        ids_1T = torch.from_numpy(prompt.astype(np.int64))[None]
        states = BACKBONE.states(ids_1T, torch.ones_like(ids_1T))
        x = torch.cat([states[layer][0, -1:] for layer in LAYERS], dim=-1).half().float()
        h = side.moved("b", x, states[-1][0, -1:].float())
        first = HEAD(h)[0].argmax()
        if int(first) != responses.end_of_text(SPEC):
            assert moved[i].split()[0] == responses.said(SPEC, [int(first)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_moves_plug_into_models_of_any_number_format(dtype):
    side = solve(NextTokenSide(), {"b": records(texts(240))[0]}, {"b": HEAD})
    other = Backbone(SPEC)
    model = speaking_model(SPEC, other.model, VocabularyHead(SPEC, other.model)).to(dtype)
    SideTuned(side, "b", LAYERS).attach(model)
    ids = torch.arange(6)[None]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    assert logits.dtype == dtype and torch.isfinite(logits).all()


def test_words_of_any_script_are_compared():
    found = nearness(["漢字 да", "Yes, sir!"], ["漢字 да", "yes sir"])
    assert found["exact_match"] == 0.5
    assert found["rouge_l"] in (None, pytest.approx(1.0))


def test_moves_of_another_depth_are_told():
    side = NextTokenSide()
    cut = catalogue.find("random-llama-l2")
    shallow = Backbone(cut)
    model = speaking_model(cut, shallow.model, VocabularyHead(cut, shallow.model))
    with pytest.raises(ValueError, match="num_hidden_layers=3"):
        SideTuned(side, "b", LAYERS).attach(model)
