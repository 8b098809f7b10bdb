"""Forward-only learning against its formulas, against backpropagation, and on a task that can be
learned.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from learning.backbones import catalogue
from learning.federated import forward_gradient as fg
from learning.federated.aggregation import ServerOptimiser
from learning.federated.seeds import derived_seed
from learning.federated.trainable import TrainableClassifier
from learning.side.full_activations import encoded_nbytes

torch.set_num_threads(1)


def classifier_of(name, kind, classes=2):
    """A classifier moved a little from its start, where half of LoRA's gradients are zero."""
    classifier = TrainableClassifier(catalogue.find(name), kind, classes, seed=1)
    state = fg.moved(classifier.trainable(), fg.direction(classifier.trainable(), 5), 0.02)
    classifier.load_trainable(state)
    return classifier, state


def toy_batch(seed=0, n=16, tokens=6):
    """Texts of two classes told apart by their words, of several lengths: separable."""
    generator = torch.Generator().manual_seed(seed)
    labels_B = torch.arange(n) % 2
    ids_BT = torch.randint(10, 20, (n, tokens), generator=generator) + 100 * labels_B[:, None]
    mask_BT = (
        torch.arange(tokens) < torch.randint(2, tokens + 1, (n, 1), generator=generator)
    ).long()
    return ids_BT * mask_BT, mask_BT, labels_B


def logistic(seed=0, n=20, d=5):
    """A loss with no transformer in it: logistic regression on d numbers in two tensors."""
    generator = torch.Generator().manual_seed(seed)
    x_ND, y_N = torch.randn(n, d, generator=generator), (torch.arange(n) % 2).float()
    state = {"w": torch.randn(d, generator=generator) * 0.3, "b": torch.tensor([0.2])}
    return lambda s: F.binary_cross_entropy_with_logits(x_ND @ s["w"] + s["b"], y_N), state


def gradient(loss, state):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))


def inner(a, b):
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)


# --- directions and derivatives
# --------------------------------------------------------------------------------------


def test_a_direction_follows_from_its_seed_alone():
    like = {"b": torch.zeros(500, 2), "a": torch.zeros(700)}
    torch.manual_seed(3)
    first = fg.direction(like, derived_seed(0, 4))
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(1), drawn)  # torch's own generator is left alone
    again = fg.direction(dict(reversed(like.items())), derived_seed(0, 4))
    assert all(
        torch.equal(first[name], again[name]) and first[name].shape == like[name].shape
        for name in like
    )
    numbers = torch.cat([tensor.flatten() for tensor in first.values()])
    assert abs(float(numbers.mean())) < 4 / math.sqrt(1700) and abs(
        float(numbers.var()) - 1
    ) < 4 * math.sqrt(2 / 1700)
    seeds = {derived_seed(seed, step) for seed in range(20) for step in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)


def test_central_difference_is_its_formula():
    state, v = {"x": torch.tensor([2.0])}, {"x": torch.tensor([3.0])}
    # L = x^3 along v = 3: (L(2 + 3h) - L(2 - 3h)) / 2h = 3 * 4 * 3 + 27 h^2
    got = fg.central_difference(lambda s: (s["x"].double() ** 3).sum(), state, v, 0.1)
    assert got == pytest.approx(36.27, rel=1e-6)
    assert got == float(np.float32(got)) and state["x"].item() == 2.0


@pytest.mark.parametrize("name", ["random-bert", "random-llama"])
@pytest.mark.parametrize("kind", ["full", "lora", "adapter", "bitfit", "head"])
def test_forward_mode_equals_backpropagation_and_finite_differences(name, kind):
    if (name, kind) == ("random-llama", "bitfit"):
        pytest.skip("a Llama has no biases")
    classifier, state = classifier_of(name, kind)
    ids_BT, mask_BT, labels_B = toy_batch()
    loss = fg.batch_loss(classifier, ids_BT, mask_BT, labels_B)
    exact = gradient(loss, state)
    for step in range(2):
        v = fg.direction(state, derived_seed(7, step))
        value, slope = fg.directional_derivative(loss, state, v)
        scale = math.sqrt(inner(exact, exact))
        assert value == pytest.approx(
            float(F.cross_entropy(classifier(ids_BT, mask_BT), labels_B).detach()), rel=1e-5
        )
        assert slope == pytest.approx(inner(exact, v), abs=2e-5 * scale)
        length = math.sqrt(inner(v, v))
        assert fg.central_difference(loss, state, v, 0.02 / length) == pytest.approx(
            slope, abs=2e-2 * scale
        )


def test_a_direction_over_some_tensors_leaves_the_others_out():
    classifier, state = classifier_of("random-bert", "lora")
    loss = fg.batch_loss(classifier, *toy_batch())
    some = {name: state[name] for name in list(state)[:3]}
    v = fg.direction(some, 1)
    _, slope = fg.directional_derivative(loss, some, v)
    exact = gradient(loss, state)
    assert slope == pytest.approx(inner({name: exact[name] for name in some}, v), rel=1e-4)
    assert all(torch.equal(classifier.trainable()[name], state[name]) for name in state)


@pytest.mark.parametrize("mode", ["forward mode", "central difference"])
def test_the_mean_forward_gradient_is_the_gradient(mode):
    loss, state = logistic()
    exact, probes, n = gradient(loss, state), [], 1500
    for step in range(n):
        seed = derived_seed(11, step)
        v = fg.direction(state, seed)
        s = (
            fg.directional_derivative(loss, state, v)[1]
            if mode == "forward mode"
            else fg.central_difference(loss, state, v, 0.01)
        )
        probes.append(fg.Probe(seed, s))
    mean = fg.gradient_of(probes, state)
    g, m = (torch.cat([s[name].flatten() for name in state]) for s in (exact, mean))
    error = torch.sqrt((g.square().sum() + g.square()) / n)  # Var[s v_i] = |g|^2 + g_i^2
    z = (m - g) / error
    assert z.abs().max() < 4 and 0.1 < z.square().mean() < 3
    assert (
        g / error
    ).abs().max() > 20  # so precise that a scale wrong by a quarter, or a wrong sign, would be seen


# --- FwdLLM
# ------------------------------------------------------------------------------------------


def test_candidates_are_of_each_tensor_those_nearest_to_the_last_gradient():
    """A tenth of 40, by the cosine of each tensor alone, as in the published trainer."""
    _, state = logistic()
    last = {"w": torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]), "b": torch.tensor([1.0])}
    chosen = fg.nearest_candidates(last, pool=3, number=4)
    for name, goal in last.items():
        everyone = [fg.candidate(state, 3, dict.fromkeys(state, i))[name] for i in range(40)]
        flat = torch.stack([v.flatten() for v in everyone])
        near = torch.cosine_similarity(flat, goal.flatten(), dim=-1)
        assert near[chosen[name]].tolist() == near.sort(descending=True)[0][:4].tolist()
    assert chosen["w"] != chosen["b"]
    mixed = fg.candidate(state, 3, {"w": chosen["w"][0], "b": chosen["b"][0]})
    for name in state:
        number = dict.fromkeys(state, chosen[name][0])
        assert torch.equal(mixed[name], fg.candidate(state, 3, number)[name])
    zero = {name: torch.zeros_like(tensor) for name, tensor in last.items()}
    equal = fg.nearest_candidates(zero, 3, 4)
    assert equal == {name: [0, 1, 2, 3] for name in last}  # all equally near: the earlier ones


def test_a_pool_of_large_tensors_is_looked_through_in_parts(monkeypatch):
    last = {"w": torch.randn(9, 7, generator=torch.Generator().manual_seed(1))}
    whole = fg.nearest_candidates(last, pool=5, number=6)
    monkeypatch.setattr(fg, "_CHUNK", 130)
    assert fg.nearest_candidates(last, pool=5, number=6) == whole


def test_a_gradient_is_slopes_times_directions():
    losses, state = [logistic(seed)[0] for seed in range(3)], logistic()[1]
    directions = [fg.candidate(state, 7, dict.fromkeys(state, i)) for i in range(2)]
    slopes = fg.slopes_along(losses, state, directions)
    by_hand = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for v in directions:
        for loss in losses:
            s = (loss(fg.moved(state, v, 0.01)) - loss(fg.moved(state, v, -0.01))) / 0.02
            by_hand = fg.moved(by_hand, v, float(s) / 6)
    got = fg.fwdllm_gradient(slopes, directions)
    assert slopes.dtype == np.float32
    assert all(torch.allclose(got[name], by_hand[name], atol=1e-5) for name in state)


def test_the_variance_gate_by_hand():
    """Halves (1, 3) and (5, 7) have means 2 and 6: variance (6 - 2)^2 / 2 = 8. Two calmer devices
    bring it to 0.5.
    """
    first = [
        {"watched": torch.tensor([x, x]), "other": torch.tensor([1e9 * x])}
        for x in (1.0, 3.0, 5.0, 7.0)
    ]
    assert fg.half_mean_variance([g["watched"] for g in first]) == 8.0
    assert fg.needs_more(first, "watched", threshold=7.9) and not fg.needs_more(
        first, "watched", threshold=8.0
    )
    more = [*first, {"watched": torch.tensor([1.0, 1.0])}, {"watched": torch.tensor([-1.0, -1.0])}]
    # halves (1, 3, 5) and (7, 1, -1): means 3 and 7/3
    assert fg.half_mean_variance([g["watched"] for g in more]) == pytest.approx(
        (2 / 3) ** 2 / 2, rel=1e-6
    )
    assert not fg.needs_more(more, "watched", threshold=7.9)
    state, last = fg.fwdllm_step(
        {"watched": torch.tensor([10.0, 10.0])}, [{"watched": g["watched"]} for g in more], 0.5
    )
    assert torch.allclose(last["watched"], torch.tensor([16 / 6, 16 / 6]))
    assert torch.allclose(state["watched"], torch.tensor([10 - 8 / 6, 10 - 8 / 6]))
    assert fg.needs_more(first[:1], "watched", threshold=1e30)  # one gradient has no halves


def test_half_mean_variance_falls_as_two_over_n():
    generator = torch.Generator().manual_seed(0)
    for n in (2, 8, 32):
        received = list(torch.randn(n, 20_000, generator=generator))
        assert fg.half_mean_variance(received) == pytest.approx(2 / n, rel=0.05)


def test_learning_rate_warms_up_and_falls_in_a_line():
    rates = [fg.warm_up_then_linear(step, 1.0, warm_up=4, total=12) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert np.allclose(np.diff(rates[4:]), -1 / 8) and rates[12] == 0.0


# --- FedMeZO
# ------------------------------------------------------------------------------------------


def test_spsa_is_its_formula():
    loss, state = logistic()
    stepped, (probe,) = fg.mezo_steps([loss], state, seed=9, learning_rate=0.1)
    v = fg.direction(state, derived_seed(9, 0))
    eps = 1e-3
    ahead = float(loss({name: state[name] + eps * v[name] for name in state}))
    behind = float(loss({name: state[name] - eps * v[name] for name in state}))
    assert probe == fg.Probe(derived_seed(9, 0), float(np.float32((ahead - behind) / (2 * eps))))
    assert all(
        torch.allclose(stepped[n], state[n] - 0.1 * probe.derivative * v[n], atol=1e-7)
        for n in state
    )


@pytest.mark.parametrize("kind", ["lora", "head"])
def test_a_server_with_seeds_and_scalars_has_the_clients_state_to_the_bit(kind):
    classifier, state = classifier_of("random-bert", kind)
    losses = [fg.batch_loss(classifier, *toy_batch(step)) for step in range(6)]
    local, probes = fg.mezo_steps(losses, state, seed=2, learning_rate=0.05)
    payload = fg.encode_probes(probes)
    assert len(payload) == fg.PROBE_BYTES * 6 == 72 and fg.decode_probes(payload) == probes
    rebuilt = fg.replay(dict(reversed(state.items())), fg.decode_probes(payload), 0.05)
    assert all(torch.equal(rebuilt[name], local[name]) for name in state)
    assert any(not torch.equal(local[name], state[name]) for name in state)
    assert all(torch.equal(classifier.trainable()[name], state[name]) for name in state)


@given(
    st.lists(
        st.tuples(st.integers(0, 2**63 - 1), st.floats(allow_nan=False, width=32)), max_size=20
    )
)
def test_probes_cross_the_wire_unchanged(pairs):
    probes = [fg.Probe(seed, derivative) for seed, derivative in pairs]
    data = fg.encode_probes(probes)
    assert fg.decode_probes(data) == probes and len(data) == 12 * len(probes)


# --- Spry
# ------------------------------------------------------------------------------------------


@given(
    tensors=st.integers(1, 40),
    clients=st.integers(1, 60),
    each=st.integers(1, 5),
    head=st.integers(0, 2),
)
def test_every_tensor_is_dealt_and_the_round_goes_on(tensors, clients, each, head):
    names = [f"t{i}" for i in range(tensors)]
    shared = names[tensors - min(head, tensors) :]
    hands = fg.assign_tensors(names, clients, each, shared)
    assert len(hands) == clients
    assert {name for hand in hands for name in hand} == set(names)
    assert all(len(set(hand)) == len(hand) and set(shared) <= set(hand) for hand in hands)
    times = [sum(name in hand for hand in hands) for name in names if name not in shared]
    assert not times or max(times) - min(times) <= 1  # portions are dealt evenly
    portions = math.ceil((tensors - len(shared)) / each)
    sizes = [math.ceil((len(hand) - len(shared)) / each) for hand in hands]
    assert max(sizes) - min(sizes) <= 1 and (portions == 0 or min(sizes) >= 1)


def test_a_deal_by_hand():
    names = ["a1", "b1", "a2", "b2", "a3", "b3", "head"]
    assert fg.assign_tensors(names, 2, 2, ["head"]) == [
        ("a1", "b1", "a3", "b3", "head"),
        ("a2", "b2", "head"),
    ]
    assert fg.assign_tensors(names, 4, 2, ["head"])[3] == (
        "a1",
        "b1",
        "head",
    )  # more clients than portions
    assert fg.assign_tensors(names[:3], 1, 2) == [("a1", "b1", "a2")]


def test_spry_trains_what_it_was_dealt_with_the_slope_times_the_direction():
    classifier, state = classifier_of("random-bert", "lora")
    loss, assigned = fg.batch_loss(classifier, *toy_batch()), list(state)[2:4]
    result = fg.spry_steps([loss], state, assigned, seed=4, learning_rate=0.01)
    assert list(result.state) == assigned and len(result.probes[0]) == 1
    own = {name: state[name] for name in assigned}
    v, exact = fg.direction(own, derived_seed(4, 0)), gradient(loss, state)
    slope = inner({name: exact[name] for name in assigned}, v)
    assert result.probes[0][0].derivative == pytest.approx(slope, rel=1e-4)
    leaves = [state[name].clone().requires_grad_() for name in assigned]
    optimiser = torch.optim.AdamW(leaves, lr=0.01, weight_decay=0.01)
    for leaf, name in zip(leaves, assigned, strict=True):
        leaf.grad = slope * v[name]
    optimiser.step()
    assert all(
        torch.allclose(result.state[n], leaf, atol=1e-5)
        for n, leaf in zip(assigned, leaves, strict=True)
    )
    assert all(torch.equal(classifier.trainable()[name], state[name]) for name in state)
    assert not any(
        tensor.requires_grad or tensor.grad is not None for tensor in result.state.values()
    )


def test_more_perturbations_average():
    loss, state = logistic()
    result = fg.spry_steps([loss, loss], state, ["w", "b"], seed=1, perturbations=3)
    seeds = [probe.seed for step in result.probes for probe in step]
    assert [len(step) for step in result.probes] == [3, 3] and len(set(seeds)) == 6


def test_the_server_averages_each_tensor_over_those_who_trained_it():
    state = {"a": torch.tensor([0.0]), "b": torch.tensor([0.0]), "c": torch.tensor([7.0])}
    returned = [{"a": torch.tensor([1.0])}, {"a": torch.tensor([3.0]), "b": torch.tensor([-0.5])}]
    yogi, examples = ServerOptimiser("fedyogi", learning_rate=0.1), [30, 10]
    # (30 x 1 + 10 x 3) / 40 = 1.5; v = 0 + 0.01 delta^2, or a little more of it than tau^2
    for v_start in (0.0, 1e-6):
        stepped, moments = fg.spry_server_step(yogi, state, returned, examples, None, v_start)
        for name, delta in (("a", 1.5), ("b", -0.5)):
            v = v_start + 0.01 * delta**2
            assert stepped[name].item() == pytest.approx(
                0.1 * 0.1 * delta / (math.sqrt(v) + 1e-3), rel=1e-5
            )
        assert stepped["c"].item() == 7.0 and set(moments.m) == {"a", "b"}
    again, _ = fg.spry_server_step(yogi, stepped, returned[:1], [30], moments)
    m = 0.9 * 0.1 * 1.5 + 0.1 * (1 - stepped["a"].item())
    d2 = (1 - stepped["a"].item()) ** 2
    grown = 1e-6 + 0.01 * 1.5**2
    v = grown + 0.01 * d2 * (1 if d2 > grown else -1)
    moved = 0.1 * m / (math.sqrt(v) + 1e-3)
    assert again["a"].item() == pytest.approx(stepped["a"].item() + moved, rel=1e-5)
    plain, _ = fg.spry_server_step(ServerOptimiser("fedavg"), state, returned, [1, 1])
    assert plain["a"].item() == 2.0 and plain["b"].item() == -0.5


# --- each of them learns
# ------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_fwdllm_learns():
    classifier, state = classifier_of("random-bert", "head")
    loss = fg.batch_loss(classifier, *toy_batch())
    start, last = float(loss(state).detach()), None
    for step in range(25):
        chosen = last and fg.nearest_candidates(last, step, 16)
        gradients = []
        for device in range(16):
            numbers = {n: chosen[n][device] if chosen else device for n in state}
            v = [fg.candidate(state, step, numbers)]
            gradients.append(fg.fwdllm_gradient(fg.slopes_along([loss], state, v), v))
        state, last = fg.fwdllm_step(state, gradients, 0.05)
    assert float(loss(state).detach()) < 0.5 * start


@pytest.mark.thorough
def test_fedmezo_learns():
    classifier, state = classifier_of("random-bert", "head")
    loss = fg.batch_loss(classifier, *toy_batch())
    start = float(loss(state).detach())
    state, _ = fg.mezo_steps([loss] * 150, state, seed=0, learning_rate=0.01)
    assert float(loss(state).detach()) < 0.5 * start


@pytest.mark.thorough
def test_spry_learns():
    classifier, state = classifier_of("random-bert", "lora")
    loss = fg.batch_loss(classifier, *toy_batch())
    start, moments = float(loss(state).detach()), None
    shared = ["head.weight", "head.bias"]
    for turn in range(8):
        returned = [
            fg.spry_steps([loss] * 3, state, hand, derived_seed(turn, client), 0.02).state
            for client, hand in enumerate(fg.assign_tensors(list(state), 4, 2, shared))
        ]
        state, moments = fg.spry_server_step(
            ServerOptimiser("fedyogi", 0.05), state, returned, [1.0] * 4, moments
        )
    assert float(loss(state).detach()) < 0.5 * start


# --- docs
# ------------------------------------------------------------------------------------------


def roberta_lora(rank):
    """RoBERTa-base with LoRA and a head of two classes, without weights."""
    from transformers import AutoConfig, AutoModel

    spec = catalogue.find("roberta-base")
    fields = dict(catalogue.config_of(spec))
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    return TrainableClassifier(spec, "lora", 2, rank=rank, backbone=model.requires_grad_(False))


def test_the_worked_numbers_of_the_docs():
    width = catalogue.config_of(catalogue.find("roberta-base"))["hidden_size"]
    hidden_states = 16 * 128 * width * 4
    rank_8, rank_1 = roberta_lora(8).trainable_bytes, roberta_lora(1)
    tensors = len(rank_1.trainable_parameters())
    names = list(rank_1.trainable_parameters())
    hand = fg.assign_tensors(names, 100, 2, [name for name in names if name.startswith("head.")])[0]
    dealt = sum(rank_1.trainable_parameters()[name].nbytes for name in hand)
    probes = len(fg.encode_probes([fg.Probe(1, 0.5)] * 30))
    mobillm = [
        encoded_nbytes(wire, 16, 16 * 256, 12, width, 2) for wire in ("float32", "int8", "int4")
    ]
    rows = [
        f"| SplitFed | a batch of 16 × 128 tokens | {hidden_states:,} and the labels | "
        f"{hidden_states:,} |",
        f"| FedBert | a batch of 16 × 128 tokens | {2 * hidden_states:,} | {2 * hidden_states:,} |",
        f"| FwdLLM | a batch, LoRA r 8 and a head of 2 classes ({tensors} tensors), the last "
        f"gradient chose | {rank_8:,} | {rank_8 + 8 + 4 * tensors:,} |",
        f"| FwdLLM, shared seeds | the same | 4 | {rank_8 + 8 + 4 * tensors:,} |",
        f"| FedMeZO, shared seeds | a round of 30 local steps | {probes} | {probes} from "
        "each client |",
        f"| Spry | a round of 100 clients, LoRA r 1: two tensors and the head each | {dealt:,} | "
        f"{rank_1.trainable_bytes:,} |",
        f"| MobiLLM, 32 bits | a batch of 16 × 256 tokens, 12 layers | {mobillm[0]:,} | 0 |",
        f"| MobiLLM, 8 bits | the same | {mobillm[1]:,} | 0 |",
        f"| MobiLLM, 4 bits | the same | {mobillm[2]:,} | 0 |",
        "| PAE MobiLLM without its shortcut | a text of 256 tokens, once | "
        f"{encoded_nbytes('float32', 1, 256, 12, width, 2):,} | 0 |",
    ]
    docs = (Path(__file__).parents[2] / "docs" / "forward_only_and_split.md").read_text(
        encoding="utf-8"
    )
    for row in rows:
        assert row in docs
