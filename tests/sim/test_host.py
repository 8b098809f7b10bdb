"""Where the learning runs: inline and on threads alike, in order, with errors raised where the work
is joined.
"""

import sys
import threading
import time

import pytest

from sim.kernel.host import Host, HostError


def square(x: int) -> int:
    time.sleep(0.002 * (5 - x % 5))  # later pieces end sooner
    return x * x


@pytest.fixture(params=[1, 2, 4])
def host(request):
    host = Host(request.param)
    yield host
    host.close()


def test_map_keeps_the_order_of_its_items(host):
    assert list(host.map(square, [(x,) for x in range(20)])) == [x * x for x in range(20)]
    assert host.torch_s > 0


def test_shares_of_a_piece_run_at_once_and_come_in_order(host):
    threads = host._threads
    meet = threading.Barrier(threads, timeout=60)

    def share(turn: tuple[int, int]) -> tuple[int, int]:
        meet.wait()  # raises where they come one after another
        return turn

    assert host.spread(share) == [(k, threads) for k in range(threads)]


def test_an_error_in_a_share_is_raised_when_none_runs_any_more(host):
    ended = []

    def share(turn: tuple[int, int]) -> None:
        if turn[0] == 0:
            raise ArithmeticError("the first")
        time.sleep(0.02)
        ended.append(turn)

    with pytest.raises(ArithmeticError, match="the first"):
        host.spread(share)
    assert len(ended) == host._threads - 1


def test_threads_that_gain_nothing_are_given_no_shares():
    host = Host(2)
    host._beside.is_worth_it = False
    assert host.spread(lambda share: share) == [(0, 1)]
    host.close()


def test_started_pieces_run_one_after_another_in_call_order(host):
    seen, running = [], threading.Lock()

    def piece(x: int) -> int:
        assert running.acquire(blocking=False), "two pieces ran at once"
        seen.append(square(x))
        running.release()
        return x

    futures = [host.start(lambda x=x: piece(x)) for x in range(10)]
    assert [future.result() for future in futures] == list(range(10))
    assert seen == [x * x for x in range(10)]


def test_an_error_comes_where_the_work_is_joined_not_where_it_is_started(host):
    future = host.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        future.result()
    with pytest.raises(ZeroDivisionError):
        list(host.map(lambda x: 1 // x, [(1,), (0,), (1,)]))


@pytest.mark.parametrize("workers", [0, -1, "many", 1.5, None])
def test_other_workers_are_refused(workers):
    with pytest.raises(HostError, match="a number from 1, auto or ray"):
        Host(workers)


def test_ray_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    with pytest.raises(HostError, match=r"pip install 'mobifleet\[ray\]'"):
        Host("ray")
