"""Independent pieces of learning on threads: really at once, never more than a few ahead, with the
results and errors of one worker.
"""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from learning.backbones.catalogue import find
from learning.federated.trainable import TrainableClassifier
from sim.kernel.host import Host
from sim.kernel.side_by_side import AHEAD, SideBySide

AT_ONCE = {"arrivals": {"kind": "at-once"}}
ROUNDS = {"rounds": 2, "participation": 1.0, "device_batch": 8, "evaluate_every": 1}
METHODS = {
    "fedavg-lora": {"kind": "fedavg-lora", **ROUNDS},
    "fedavg-full": {"kind": "fedavg-full", **ROUNDS},
    "late": {"kind": "fedavg-bitfit", **ROUNDS, "participation": 0.3, "over_selection": 2},
    "fedbuff": {"kind": "fedbuff", "answers": 6, "buffer": 2, "concurrency": 1.0, "rank": 4},
    "fedasync": {"kind": "fedasync", "answers": 6, "concurrency": 1.0},
    "flexlora": {"kind": "flexlora", "ranks": {"jetson-tx2": 2}, "rank": 4, **ROUNDS},
    "fwdllm": {"kind": "fwdllm", **ROUNDS, "most_asks": 2},
    "fedmezo": {"kind": "fedmezo", **ROUNDS, "local_steps": 4, "rank": 4, "alpha": 8},
    "local-lora": {"kind": "local-lora", "rounds": 2, "device_batch": 8},
}


@pytest.fixture(params=[2, 4])
def host(request):
    host = Host(request.param)
    yield host
    host.close(at_once=True)


@pytest.fixture
def on_threads(monkeypatch):
    """How many pieces have been given to threads."""
    begun, begin = [0], SideBySide.begin

    def counted(*what):
        begun[0] += 1
        return begin(*what)

    monkeypatch.setattr(SideBySide, "begin", counted)
    return begun


def test_pieces_that_may_run_side_by_side_do(host):
    together = threading.Barrier(2, timeout=30)
    pieces = [host.learn(meeting, Named(together), k, side_by_side=True) for k in range(4)]
    assert [piece.value for piece in pieces] == [0, 1, 2, 3]


class Named:
    """An argument that a key can be made of."""

    def __init__(self, held: object) -> None:
        self.held = held

    def __repr__(self) -> str:
        return "named"


def meeting(barrier: Named, k: int) -> int:
    barrier.held.wait()
    return k


def test_others_run_in_the_calling_thread_and_wait_for_what_they_need(host):
    gate = threading.Event()

    def slow(k: int) -> int:
        gate.wait(30)
        return k

    def summed(numbers: list[int]) -> tuple[int, str]:
        return sum(numbers), threading.current_thread().name

    pieces = [host.learn(slow, k, side_by_side=True) for k in (1, 2)]
    threading.Timer(0.05, gate.set).start()
    total = host.learn(summed, pieces)
    assert total.value == (3, threading.current_thread().name)
    after = [host.learn(summed, [piece, total.value[0]], side_by_side=True) for piece in pieces]
    assert [piece.value[0] for piece in after] == [4, 5]
    assert all(piece.value[1].startswith("mobifleet-worker") for piece in after)


def test_what_waits_for_a_piece_is_not_counted_as_its_own_time(host):
    gate, began_s = threading.Event(), time.perf_counter()
    first = host.learn(gate.wait, 30, side_by_side=True)
    threading.Timer(0.3, gate.set).start()
    second = host.learn(int, first)
    third = host.learn(int, first, side_by_side=True)
    assert (second.value, third.value) == (1, 1)
    # once, not two or three times
    assert host.torch_s < 1.5 * (time.perf_counter() - began_s)


@pytest.mark.parametrize("threads", [2, 3])
def test_no_more_pieces_are_begun_than_a_few_a_thread(threads):
    host, ended, begun = Host(threads), threading.Semaphore(0), []

    def feed() -> None:
        for k in range(20):
            host.learn(ended.acquire, side_by_side=True)
            begun.append(k)

    def begun_in_the_end(count: int) -> int:
        """How many have begun a while after so many have."""
        deadline_s = time.monotonic() + 60
        while len(begun) < count and time.monotonic() < deadline_s:
            time.sleep(0.01)
        feeder.join(0.2)
        return len(begun)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert begun_in_the_end(AHEAD * threads) == AHEAD * threads
    ended.release()
    assert begun_in_the_end(AHEAD * threads + 1) == AHEAD * threads + 1
    ended.release(19)
    feeder.join(30)
    host.close()
    assert len(begun) == 20


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_once_its_end_has_come_and_never_of_what_nobody_joined(workers):
    host, gate = Host(workers), threading.Event()

    def wrong(what: str) -> None:
        gate.wait(30)
        raise ArithmeticError(what)

    if workers == 1:
        gate.set()
    host.learn(wrong, "of a device that was late", side_by_side=True)
    first, second = (host.learn(wrong, what, side_by_side=True) for what in ("first", "second"))
    fine = host.learn(int, 1)
    if workers == 1:
        with pytest.raises(ArithmeticError, match="first"):
            host.joined(first)
        return
    assert host.joined(first) is first  # not waited for
    host.joined(second)
    assert host.joined(fine) is fine
    gate.set()
    with pytest.raises(ArithmeticError, match="first"):
        host.close()


def test_a_piece_is_let_go_with_its_arguments():
    host = Host(2)

    class Large:
        def __repr__(self) -> str:
            return "large"

    large = Large()
    seen = weakref.ref(large)
    piece = host.learn(repr, large, side_by_side=True)
    assert piece.value == "large"
    host.close()
    del large
    gc.collect()
    assert seen() is None


# --- whether threads gain


def busy(pieces: int, is_on_trial: bool = True) -> SideBySide:
    """After so many pieces that never let go of Python's lock for long."""
    with ThreadPoolExecutor(2) as pool:
        beside = SideBySide(pool, 2, is_on_trial)
        begun = [beside.begin(lambda: sum(range(20_000)), ()) for _ in range(pieces)]
        assert {one.result() for one in begun} == {sum(range(20_000))}
    return beside


def test_a_trial_ends_threads_that_gain_nothing():
    assert busy(4).is_worth_it  # nothing is known yet
    assert not busy(40).is_worth_it
    assert busy(40, is_on_trial=False).is_worth_it  # whoever names a number gets it


def test_pieces_run_in_turn_where_threads_gain_nothing():
    host = Host("auto")
    if not host.is_parallel:
        pytest.skip("one core")
    threads = host._threads
    assert host.workers == f"{threads} workers"
    host._beside.is_worth_it = False
    name = host.learn(lambda: threading.current_thread().name, side_by_side=True)
    assert name.value == threading.current_thread().name
    assert host.workers == f"1 worker ({threads} threads gained nothing)"


# --- models


@pytest.mark.parametrize("kind", ["lora", "adapter", "bitfit", "full"])
def test_a_twin_shares_what_is_frozen_and_trains_what_is_its_own(kind):
    model = TrainableClassifier(find("random-bert"), kind, 3, head="dense")
    twin = model.twin()
    ids = torch.arange(12).reshape(2, 6) + 2
    before = model(ids, torch.ones_like(ids))
    assert torch.equal(twin(ids, torch.ones_like(ids)), before)
    for (name, own), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (own is other) == (name not in model.trainable_parameters())
    twin(ids, torch.ones_like(ids)).sum().backward()
    assert all(p.grad is None for p in model.parameters())
    twin.load_trainable({n: t + 1 for n, t in model.trainable().items()})
    assert torch.equal(model(ids, torch.ones_like(ids)), before)
    assert not torch.equal(twin(ids, torch.ones_like(ids)), before)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[] if name in ("fedavg-lora", "fedbuff", "fwdllm") else pytest.mark.thorough
        )
        for name in METHODS
    ],
)
def test_client_updates_on_threads_have_the_bits_of_one_worker(name, simulate, mark, on_threads):
    method = METHODS[name]
    alone = simulate(method=method, **AT_ONCE)
    assert on_threads == [0]
    for workers in (2, 4):
        on_threads[0] = 0
        sim = simulate(method=method, workers=workers, **AT_ONCE)
        assert on_threads[0] > 1 and mark(sim) == mark(alone)
        for model in sim.method.learner.models:
            made = sim.method.learner._idle.get(model, [])
            # whatever was lent, to the threads and to the caller, is back, and one more is kept
            assert len(made) <= workers + 2


@pytest.mark.thorough
@pytest.mark.parametrize("method", [{"kind": "spry", **ROUNDS}, {"kind": "splitfed-v1", **ROUNDS}])
def test_what_shares_state_between_threads_stays_in_turn(method, simulate, on_threads):
    simulate(method=method, workers=2, **AT_ONCE)
    assert on_threads == [0]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_client_update_ends_the_run_alike(workers, simulate, monkeypatch):
    def broken(*what):
        raise ZeroDivisionError("of the second device")

    monkeypatch.setattr("learning.federated.local_training.train", broken)
    with pytest.raises(ZeroDivisionError, match="of the second device"):
        simulate(method=METHODS["fedavg-lora"], workers=workers, **AT_ONCE)
