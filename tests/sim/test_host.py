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
