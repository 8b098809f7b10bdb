"""Aggregation against the papers' formulas written out, brute force, and properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learning.backbones.catalogue import find
from learning.backbones.tokens import Tokens
from learning.federated.aggregation import (
    ServerOptimiser,
    Staleness,
    fed_async,
    fed_avg,
    fed_buff,
    flex_lora,
    is_finite,
    model_delta,
    restrict,
    server_step,
    weighted_mean,
)
from learning.federated.local_training import LocalTraining, train
from learning.federated.state_codec import pack, unpack
from learning.federated.trainable import TrainableClassifier

torch.set_num_threads(1)


def state(seed, shapes=None):
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or {"head.weight": (2, 3), "layers.0.w": (3, 3), "layers.1.w": (3, 3)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def close(a, b, atol=1e-6):
    return list(a) == list(b) and all(torch.allclose(a[n], b[n], atol=atol) for n in a)


# --- means
# ------------------------------------------------------------------------------------------


def test_a_round_of_fed_avg_is_an_independent_plain_loop():
    """Four devices, unequal data, local SGD: against one copy of the model a device, torch.optim
    and plain sums.
    """
    model = TrainableClassifier(find("random-bert"), "lora", 2)
    rng = np.random.default_rng(0)
    counts, start = (3, 5, 8, 4), model.trainable()
    data = [
        ([rng.integers(2, 2000, 6).astype(np.int32) for _ in range(n)], rng.integers(2, size=n))
        for n in counts
    ]
    how = LocalTraining(epochs=1, batch=100, learning_rate=0.1, optimiser="sgd", dropout=0)
    sent = [
        train(model, start, Tokens(ids), labels, how, seed=k).state
        for k, (ids, labels) in enumerate(data)
    ]
    ours = fed_avg(start, sent, counts)

    expected = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for ids, labels in data:
        device = TrainableClassifier(find("random-bert"), "lora", 2)
        optimiser = torch.optim.SGD([p for p in device.parameters() if p.requires_grad], lr=0.1)
        x = torch.from_numpy(np.stack(ids)).long()
        torch.nn.functional.cross_entropy(
            device(x, torch.ones_like(x)), torch.from_numpy(labels)
        ).backward()
        optimiser.step()
        for name, parameter in device.named_parameters():
            if parameter.requires_grad:
                expected[name] += parameter.detach() * len(labels) / sum(counts)
    assert close(ours, expected, atol=1e-5) and not close(ours, start, atol=1e-5)


def test_a_mean_is_over_those_who_have_the_tensor():
    deep, cut, other = state(0), state(1), state(2)
    del cut["layers.1.w"], other["layers.1.w"]
    mean = weighted_mean([cut, deep, other], [1, 2, 3])
    assert list(mean) == list(deep)  # the deepest model's order, though a shallower one came first
    assert torch.allclose(
        mean["layers.0.w"],
        (cut["layers.0.w"] + 2 * deep["layers.0.w"] + 3 * other["layers.0.w"]) / 6,
    )
    assert torch.allclose(mean["layers.1.w"], deep["layers.1.w"])


def test_what_nobody_sent_stays():
    x, cut = state(0), restrict(state(1), {"head.weight": None, "layers.0.w": None})
    new = fed_avg(x, [cut], [1])
    assert torch.equal(new["layers.1.w"], x["layers.1.w"]) and torch.equal(
        new["layers.0.w"], cut["layers.0.w"]
    )


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 1000))
def test_means_are_scale_free_and_within_bounds(weights, seed):
    states = [state(seed + k) for k in range(len(weights))]
    mean, scaled = weighted_mean(states, weights), weighted_mean(states, [7 * w for w in weights])
    assert close(mean, scaled)
    for name in mean:
        stacked = torch.stack([s[name] for s in states])
        assert (mean[name] <= stacked.amax(0) + 1e-6).all() and (
            mean[name] >= stacked.amin(0) - 1e-6
        ).all()
    assert close(weighted_mean([states[0]] * len(weights), weights), states[0])


def test_weights_that_make_no_mean_are_refused():
    for weights in ([0, 0], [1, -1], [3, -1]):
        with pytest.raises(ValueError, match=r"head.weight must not be negative, nor all zero"):
            weighted_mean([state(0), state(1)], weights)


# --- server optimisers
# ------------------------------------------------------------------------------------------


def test_fed_avg_as_a_server_step_is_the_mean():
    x, sent = state(0), [state(1), state(2)]
    delta = weighted_mean([model_delta(s, x) for s in sent], [1, 3])
    new, moments = server_step(ServerOptimiser(), x, delta)
    assert close(new, fed_avg(x, sent, [1, 3])) and not moments.m and not moments.v


def test_server_steps_by_hand():
    """Two steps on one number: deltas 0.5 then -0.2 from x = 1, eta 0.1, beta1 0.9, beta2 0.99, tau
    0.001.
    """

    def number(value):
        return torch.tensor([value], dtype=torch.float64)

    expected = {
        "fedavgm": [1 + 0.1 * 0.5, 1 + 0.1 * 0.5 + 0.1 * (0.9 * 0.5 - 0.2)],
        "fedadam": [],
        "fedyogi": [],
    }
    v0 = 1e-6
    m1, m2 = 0.1 * 0.5, 0.9 * 0.1 * 0.5 - 0.1 * 0.2
    adam = [0.99 * v0 + 0.01 * 0.25]
    adam.append(0.99 * adam[0] + 0.01 * 0.04)
    yogi = [v0 + 0.01 * 0.25]  # v0 < d^2: grows
    yogi.append(yogi[0] + 0.01 * 0.04)  # 0.0025 < 0.04: grows
    for kind, (v1, v2) in (("fedadam", adam), ("fedyogi", yogi)):
        x1 = 1 + 0.1 * m1 / (math.sqrt(v1) + 1e-3)
        expected[kind] = [x1, x1 + 0.1 * m2 / (math.sqrt(v2) + 1e-3)]
    for kind, (x1, x2) in expected.items():
        how = ServerOptimiser(kind, learning_rate=0.1)
        x, moments = server_step(how, {"w": number(1)}, {"w": number(0.5)})
        assert x["w"].item() == pytest.approx(x1, rel=1e-12), kind
        x, moments = server_step(how, x, {"w": number(-0.2)}, moments)
        assert x["w"].item() == pytest.approx(x2, rel=1e-12), kind


def test_yogi_lets_v_shrink_by_a_small_delta_only_a_little():
    how, d = ServerOptimiser("fedyogi"), torch.tensor([2.0]).double()
    _, moments = server_step(how, {"w": d * 0}, {"w": d})
    v = moments.v["w"].item()
    _, moments = server_step(how, {"w": d * 0}, {"w": d * 0 + 0.1}, moments)
    assert v == pytest.approx(1e-6 + 0.01 * 4) and moments.v["w"].item() == pytest.approx(
        v - 0.01 * 0.01
    )


def test_tensors_without_a_delta_keep_their_value_and_moments():
    x, how = state(0), ServerOptimiser("fedadam", learning_rate=0.1)
    x, moments = server_step(how, x, state(1))
    part = {"head.weight": state(2)["head.weight"]}
    new, after = server_step(how, x, part, moments)
    for name in ("layers.0.w", "layers.1.w"):
        assert torch.equal(new[name], x[name]) and torch.equal(after.m[name], moments.m[name])
    assert not torch.equal(new["head.weight"], x["head.weight"])


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_every_server_optimiser_finds_the_middle(kind):
    """Devices pull towards points whose mean is 3; from 0, deltas of a tenth of the way."""
    x, moments = {"w": torch.zeros(4)}, None
    rate = {"fedavg": 1.0, "fedavgm": 0.3}.get(kind, 0.05)
    for _ in range(400):
        deltas = [{"w": 0.1 * (torch.full((4,), point) - x["w"])} for point in (1.0, 3.0, 5.0)]
        x, moments = server_step(
            ServerOptimiser(kind, rate), x, weighted_mean(deltas, [1, 1, 1]), moments
        )
    assert torch.allclose(x["w"], torch.full((4,), 3.0), atol=0.05)


def test_nothing_given_is_changed():
    x, delta = state(0), state(1)
    kept = {n: t.clone() for n, t in x.items()}, {n: t.clone() for n, t in delta.items()}
    _, moments = server_step(ServerOptimiser("fedyogi"), x, delta)
    kept_v = {n: t.clone() for n, t in moments.v.items()}
    server_step(ServerOptimiser("fedyogi"), x, delta, moments)
    fed_async(x, delta, 0.5), fed_buff([delta], [2]), fed_avg(x, [delta], [1])
    assert close(x, kept[0], 0) and close(delta, kept[1], 0) and close(moments.v, kept_v, 0)


# --- asynchronous
# ------------------------------------------------------------------------------------------


def test_staleness_by_the_papers_formulas():
    assert [Staleness("constant").weight(t) for t in (0, 9)] == [1, 1]
    assert Staleness("polynomial", a=0.5).weight(3) == pytest.approx(0.5)
    hinge = Staleness("hinge", a=10, b=4)
    assert [hinge.weight(t) for t in (0, 4, 5, 6)] == pytest.approx([1, 1, 1 / 11, 1 / 21])


@given(
    st.sampled_from(["constant", "polynomial", "hinge"]),
    st.floats(0, 20),
    st.floats(0, 10),
    st.integers(0, 100),
)
def test_older_never_counts_more(kind, a, b, staleness):
    how = Staleness(kind, a, b)
    assert how.weight(0) == 1 and 0 < how.weight(staleness + 1) <= how.weight(staleness) <= 1


def test_fed_async_mixes_what_was_sent():
    x, new = state(0), restrict(state(1), {"head.weight": None})
    mixed = fed_async(x, new, 0.25)
    assert torch.allclose(mixed["head.weight"], 0.75 * x["head.weight"] + 0.25 * new["head.weight"])
    assert torch.equal(mixed["layers.0.w"], x["layers.0.w"])
    assert close(fed_async(x, state(1), 1.0), state(1)) and close(fed_async(x, state(1), 0.0), x)


def test_fed_buff_weighs_by_age_and_divides_by_the_count():
    deltas = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([-4.0])}]
    assert fed_buff(deltas, [0, 3, 15])["w"].item() == pytest.approx((1 + 1 / 2 - 4 / 4) / 3)
    fresh = weighted_mean(deltas, [1, 1, 1])
    assert close(fed_buff(deltas, [0, 0, 0]), fresh)
    assert fed_buff(deltas, [8, 8, 8])["w"].item() == pytest.approx(
        fresh["w"].item() / 3
    )  # no renormalisation


def test_unknown_kinds_and_negative_ages_are_refused():
    with pytest.raises(ValueError, match="not one of constant"):
        Staleness("linear").weight(1)
    with pytest.raises(ValueError, match="-1 updates old"):
        Staleness().weight(-1)
    with pytest.raises(ValueError, match="not one of fedavg"):
        server_step(ServerOptimiser("sgd"), state(0), state(1))


# --- FlexLoRA
# ------------------------------------------------------------------------------------------

A, B = "l.{}.q.lora_A.default.weight", "l.{}.q.lora_B.default.weight"


def lora(seed, rank, layers=2, out=7, inner=9):
    shapes = {"head.weight": (2, 3)}
    for layer in range(layers):
        shapes |= {A.format(layer): (rank, inner), B.format(layer): (out, rank)}
    return state(seed, shapes)


def dense(one, layer, scaling):
    return scaling * one[B.format(layer)] @ one[A.format(layer)]


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_one_device_gets_its_own_dense_update_back(rank):
    sent = lora(0, rank)
    (back,) = flex_lora([sent], [5.0], [0.5], [(rank, 0.5)])
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in sent.items()} and list(
        back
    ) == list(sent)
    for layer in (0, 1):
        assert torch.allclose(dense(back, layer, 0.5), dense(sent, layer, 0.5), atol=1e-5)
    assert torch.allclose(back["head.weight"], sent["head.weight"])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.floats(0.1, 5), st.floats(0.25, 4)), min_size=1, max_size=4
    ),
    st.integers(1, 7),
    st.floats(0.25, 4),
    st.integers(0, 99),
)
def test_every_rank_gets_the_best_of_its_rank(senders, rank, scaling, seed):
    """Against the dense mean and its full SVD: the error is that of Eckart and Young, and no rank-r
    matrix beats it.
    """
    sent = [lora(seed + k, r) for k, (r, _, _) in enumerate(senders)]
    weights, scalings = [w for _, w, _ in senders], [c for _, _, c in senders]
    (back,) = flex_lora(sent, weights, scalings, [(rank, scaling)])
    for layer in (0, 1):
        mean = sum(
            w * dense(s, layer, c) for s, w, c in zip(sent, weights, scalings, strict=True)
        ) / sum(weights)
        least = torch.linalg.svdvals(mean.double())[rank:].square().sum().sqrt().item()
        assert (dense(back, layer, scaling) - mean).norm().item() == pytest.approx(least, abs=1e-4)
        rows = back[A.format(layer)]
        assert torch.allclose(
            rows @ rows.T, torch.eye(rank), atol=1e-5
        )  # also beyond the mean's own rank: trainable


def test_ranks_are_cut_from_one_another():
    sent = [lora(0, 2), lora(1, 4)]
    small, large = flex_lora(sent, [1, 1], [1, 1], [(1, 1.0), (3, 2.0)])
    for layer in (0, 1):
        assert torch.equal(small[A.format(layer)], large[A.format(layer)][:1])
        assert torch.allclose(small[B.format(layer)], 2 * large[B.format(layer)][:, :1])


def test_shallower_devices_count_where_they_have_layers():
    deep, cut = lora(0, 2), lora(1, 3, layers=1)
    (back,) = flex_lora([cut, deep], [1, 1], [1, 1], [(5, 1.0)])
    assert torch.allclose(dense(back, 0, 1), (dense(deep, 0, 1) + dense(cut, 0, 1)) / 2, atol=1e-5)
    assert torch.allclose(dense(back, 1, 1), dense(deep, 1, 1), atol=1e-5)


def test_before_any_training_the_update_is_zero_and_can_grow():
    model = TrainableClassifier(find("random-bert"), "lora", 2, rank=2)
    (back,) = flex_lora([model.trainable()] * 2, [1, 1], [1, 1], [(4, 1.0)])
    larger = TrainableClassifier(find("random-bert"), "lora", 2, rank=4, alpha=4)
    larger.load_trainable(back)
    ids = torch.arange(2, 12)[None]
    assert torch.allclose(
        larger(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)), atol=1e-6
    )
    larger(ids, torch.ones_like(ids)).sum().backward()
    grown = larger.trainable_parameters()
    assert all(
        grown[n].grad.abs().sum(0).count_nonzero() == 4 for n in grown if ".lora_B." in n
    )  # every rank moves


def test_means_of_many_tensors_at_once_are_those_of_each_to_the_bit():
    """Small ones, one too large for their company, none at all, and states of two depths."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3,), "b": (), "c": (300, 300), "d": (2, 5), "e": (0, 4), "f": (70_000,)}
    states = [
        {n: torch.randn(s, generator=generator) for n, s in shapes.items() if deep or n < "d"}
        for deep in (True, False, True)
    ]
    weights = [3.0, 1.0, 7.0]
    mean = weighted_mean(states, weights)
    assert [*mean] == [*shapes]
    for name, shape in shapes.items():
        having = [k for k in range(3) if name in states[k]]
        total, plain = torch.zeros(2, *shape, dtype=torch.float64)
        for k in having:
            share = weights[k] / sum(weights[j] for j in having)
            total.add_(states[k][name], alpha=share)
            plain += states[k][name].double() * share
        assert torch.equal(mean[name], total.float()) and mean[name].shape == shape
        assert torch.allclose(total, plain, rtol=0, atol=1e-15)
    assert is_finite(mean)
    for name in ("b", "d", "f"):
        wrong = {**mean, name: mean[name].clone().fill_(math.nan)}
        assert not is_finite(wrong)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_small_state_is_looked_at_as_one(odd):
    state = {"a": torch.ones(3), "b": torch.ones(()).half(), "e": torch.ones(0, 4)}
    assert is_finite(state) and is_finite({})
    for name in ("a", "b"):
        assert not is_finite({**state, name: state[name].clone().fill_(odd)})


def test_a_state_that_is_nothing_is_no_bytes():
    assert unpack(pack({}), {}) == {}
