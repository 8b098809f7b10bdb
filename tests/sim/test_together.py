"""Client updates that are computed as one, as on a card: with the clock and bytes of each computed
alone, results alike to rounding, and one digest whatever was interrupted.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from learning.backbones.catalogue import find
from learning.backbones.tokens import Tokens
from learning.federated import stacked
from learning.federated.local_training import LocalTraining
from learning.federated.stackable import Room
from learning.federated.trainable import TrainableClassifier
from learning.host_device import HostDevice
from sim.kernel.host import Host
from sim.kernel.journal import Journal
from sim.kernel.learned import Taken
from sim.methods.federated_peft.client_updates import Client, updated_together
from sim.methods.on_device.learner import LocalPeftLearner
from sim.simulation import RunCallbacks

AT_ONCE = {"arrivals": {"kind": "at-once"}}
PLAIN = {"dropout": 0, "device_batch": 8, "evaluate_every": 1}
ROUNDS = {"rounds": 2, "participation": 1.0, **PLAIN}
METHODS = {
    "fedavg-lora": {"kind": "fedavg-lora", **ROUNDS},
    "prox": {"kind": "fedavg-adapter", "proximal_mu": 0.1, "local_epochs": 2, **ROUNDS},
    "late": {"kind": "fedavg-lora", **ROUNDS, "participation": 0.5, "over_selection": 2},
    "coded": {"kind": "fedavg-lora", "wire": ["top-0.2", "int8"], "error_feedback": True, **ROUNDS},
    "fedbuff": {"kind": "fedbuff", "answers": 6, "buffer": 2, "concurrency": 1.0, **PLAIN},
    "fedasync": {"kind": "fedasync", "answers": 6, "concurrency": 1.0, **PLAIN},
    "flexlora": {"kind": "flexlora", "ranks": {"jetson-tx2": 2}, "rank": 4, **ROUNDS},
    "local-lora": {"kind": "local-lora", "rounds": 9, "evaluated_devices": 6, **PLAIN},
}


@pytest.fixture
def as_on_a_card(monkeypatch):
    """Computes together on the CPU too; gives how many devices each stack was of."""
    sizes, train_together = [], stacked.train_together

    def counted(model, devices, settings):
        sizes.append(len(devices))
        return train_together(model, devices, settings)

    def computing():
        monkeypatch.setattr(HostDevice, "stacks", True)
        monkeypatch.setattr(stacked, "train_together", counted)
        return sizes

    return computing


def clients(number, model=None):
    """Clients of one model, with texts of their own."""
    model = model or TrainableClassifier(find("random-bert"), "lora", classes=3)
    rng = np.random.default_rng(1)
    return [
        Client(
            model,
            Tokens([rng.integers(2, 2000, 5).astype(np.int32) for _ in range(6)]),
            rng.integers(3, size=6),
            dict,
        )
        for _ in range(number)
    ]


PLAINLY = LocalTraining(batch=4, learning_rate=1e-2, optimiser="sgd", dropout=0)


def all_alike(update, number=3):
    """Whether an update gives the same of every client alone and of all together."""
    some = clients(number)
    start = some[0].model.trainable()
    updates = [(update, client, (start,)) for client in some]
    together = updated_together(updates, Room(math.inf))
    return all(
        torch.allclose(tensor, other[name], atol=1e-6)
        for client, other in zip(some, together, strict=True)
        for name, tensor in update(client, start).items()
    )


def test_an_update_may_train_twice_each_time_in_its_own_way(as_on_a_card):
    sizes = as_on_a_card()

    def twice(client, state):
        faster = dataclasses.replace(PLAINLY, learning_rate=0.05)
        return client.train(client.train(state, PLAINLY, 1).state, faster, 2).state

    assert all_alike(twice) and sizes == [3, 3]


def test_settings_of_their_own_make_stacks_of_their_own(as_on_a_card):
    sizes = as_on_a_card()

    def by_length(client, state):
        epochs = 1 + int(client.labels[0] == 0)
        return client.train(state, dataclasses.replace(PLAINLY, epochs=epochs), 1).state

    assert all_alike(by_length, 8) and len(sizes) == 2 and sum(sizes) == 8


def test_a_correction_is_part_of_what_is_trained(as_on_a_card):
    sizes = as_on_a_card()

    def corrected(client, state):
        added = {name: torch.full_like(tensor, 0.01) for name, tensor in state.items()}
        return client.train(state, PLAINLY, 1, added).state

    assert all_alike(corrected) and sizes == []


def test_an_update_may_train_on_some_of_its_texts(as_on_a_card):
    sizes = as_on_a_card()

    def on_two(client, state):
        few = client.tokens.of(range(2))
        return (
            dataclasses.replace(client, tokens=few, labels=client.labels[:2])
            .train(state, PLAINLY, 1)
            .state
        )

    assert all_alike(on_two) and sizes == [3]


def tensors_of(sim):
    learner = sim.method.learner
    if isinstance(learner, LocalPeftLearner):
        return learner._named_states()
    return learner.state.value


def farthest(one, other):
    """Relative to the other's length, of all tensors that are not zero."""
    return max(
        float((one[name] - tensor).norm() / (tensor.norm() + 1e-6))
        for name, tensor in other.items()
    )


@pytest.mark.parametrize("name", METHODS)
def test_stacked_updates_take_the_same_clock_and_give_the_same_model(
    name, simulate, mark, as_on_a_card
):
    alone = simulate(method=METHODS[name], **AT_ONCE)
    sizes = as_on_a_card()
    sim = simulate(method=METHODS[name], **AT_ONCE)
    assert max(sizes) > 1
    assert sim.env.now == alone.env.now
    assert sim.recorder.spans().equals(alone.recorder.spans())
    # what a codec keeps of a change hangs on which of two near numbers is larger
    assert farthest(tensors_of(sim), tensors_of(alone)) < (0.1 if name == "coded" else 2e-3)
    again = simulate(method=METHODS[name], **AT_ONCE)
    assert mark(again) == mark(sim)


def test_what_no_stack_can_train_is_trained_alone_to_the_bit(simulate, as_on_a_card):
    method = {"kind": "fedavg-bitfit", **ROUNDS}
    alone = simulate(method=method, **AT_ONCE).method.learner.digest()
    sizes = as_on_a_card()
    assert simulate(method=method, **AT_ONCE).method.learner.digest() == alone
    assert sizes == []


def test_dropout_is_drawn_once_for_a_stack_and_by_its_seeds(simulate, as_on_a_card):
    as_on_a_card()
    method = {**METHODS["fedavg-lora"], "dropout": 0.3}
    one, two = (simulate(method=method, **AT_ONCE).method.learner for _ in range(2))
    without = simulate(method=METHODS["fedavg-lora"], **AT_ONCE).method.learner
    assert one.digest() == two.digest() != without.digest()
    assert not any(m.training for model in one.models.values() for m in model.modules())


def test_a_device_that_diverges_spoils_no_other_of_its_stack(simulate, as_on_a_card):
    as_on_a_card()
    train = stacked.train_together

    def spoilt(model, devices, settings):
        bad = {name: tensor * math.nan for name, tensor in devices[0].state.items()}
        return train(model, [devices[0]._replace(state=bad), *devices[1:]], settings)

    stacked.train_together = spoilt
    try:
        sim = simulate(method={**METHODS["fedavg-lora"], "rounds": 1}, **AT_ONCE)
    finally:
        stacked.train_together = train
    found, start = tensors_of(sim), sim.method.learner.initial
    assert all(torch.isfinite(t).all() for t in found.values())
    assert any(not torch.equal(t, start[name]) for name, t in found.items())
    assert sim.tally.left_out == 1


@pytest.fixture
def host(monkeypatch, tmp_path):
    monkeypatch.setattr(HostDevice, "stacks", True)
    return Host(1, Journal(tmp_path))


def doubled(number):
    return 2 * number


def doubled_together(several, log=[]):  # noqa: B006
    log.append(len(several))
    return [2 * number for (number,) in several]


def test_pieces_wait_until_one_is_asked_for_and_are_computed_once(host):
    log = doubled_together.__defaults__[0]
    log.clear()
    pieces = [host.learn(doubled, k, together=doubled_together) for k in range(5)]
    assert log == [] and all(piece.waits for piece in pieces)
    assert pieces[3].value == 6 and log == [5]
    assert [piece.value for piece in pieces] == [0, 2, 4, 6, 8] and log == [5]


def test_a_piece_that_needs_one_that_waits_does_not_wait_with_it(host):
    log = doubled_together.__defaults__[0]
    log.clear()
    first = host.learn(doubled, 1, together=doubled_together)
    second = host.learn(doubled, Taken(first), together=doubled_together)
    assert log == [1] and second.value == 4 and log == [1, 1]
    third = host.learn(doubled, second)
    assert third.value == 8 and log == [1, 1]


def test_what_goes_wrong_is_raised_for_every_piece_of_the_stack(host):
    def broken(several):
        raise ZeroDivisionError("of one of them")

    pieces = [host.learn(doubled, k, together=broken) for k in range(2)]
    for piece in pieces:
        with pytest.raises(ZeroDivisionError, match="of one of them"):
            _ = piece.value


def test_ctrl_c_within_a_stack_leaves_nobody_waiting_for_ever(host):
    def interrupted(several):
        raise KeyboardInterrupt

    pieces = [host.learn(doubled, k, together=interrupted) for k in range(2)]
    with pytest.raises(KeyboardInterrupt):
        _ = pieces[0].value
    with pytest.raises(KeyboardInterrupt):
        _ = pieces[1].value


def test_there_is_no_checkpoint_after_a_piece_that_ran_while_others_waited(host, tmp_path):
    waiting = [host.learn(doubled, 1, together=doubled_together) for _ in range(2)]
    host.learn(doubled, 7)
    host.checkpoint(is_last=True)
    assert all(piece.waits for piece in waiting)
    assert Journal(tmp_path, True).position == 0


def test_a_checkpoint_is_of_the_time_before_those_that_wait(host, tmp_path):
    done = host.learn(doubled, 1)
    waiting = [host.learn(doubled, done, together=doubled_together) for _ in range(2)]
    host.checkpoint(is_last=True)
    assert all(piece.waits for piece in waiting)
    resumed = Host(1, Journal(tmp_path, True))
    assert resumed.journal.position == 1
    assert resumed.learn(doubled, resumed.learn(doubled, 1), together=doubled_together).value == 4


@pytest.mark.parametrize("name", ["fedavg-lora", "fedbuff", "coded", "local-lora"])
@pytest.mark.parametrize("steps", [12, 25, 38, 50])
def test_an_interrupted_run_stacks_as_the_whole_one_did(
    name, steps, simulate, mark, as_on_a_card, tmp_path, monkeypatch
):
    as_on_a_card()
    monkeypatch.setattr("sim.simulation.STEPS_BETWEEN_LOOKS", 1)
    whole = simulate(method=METHODS[name], **AT_ONCE)
    looks = iter(range(steps))
    stopping = RunCallbacks(should_stop=lambda: next(looks, None) is None)
    method, journal = METHODS[name], Journal(tmp_path, seconds_between_checkpoints=0)
    cut = simulate(method=method, callbacks=stopping, journal=journal, **AT_ONCE)
    assert cut.ended.reason == "interrupted"
    resumed = simulate(method=method, journal=Journal(tmp_path, resume=True), **AT_ONCE)
    assert mark(resumed) == mark(whole)
    assert resumed.host.recalled > 0 or steps < 38 or name == "fedbuff"
