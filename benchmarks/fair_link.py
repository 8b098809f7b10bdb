"""Cost of a transfer on a fair link: python benchmarks/fair_link.py [--max 100000] [--repeat 3]

n transfers are always under way: each that ends starts another. Prints microseconds of CPU time a
transfer, SimPy included, best of several repetitions: without caps, and with caps uniform in 10 ..
100 Mbit/s where the link carries 10, 30 and 70 % of them together. After the slash: how many times
a transfer crossed the water level on average. Last, 10,000 capped transfers in cells under an
ingress that carries 70 % of what the cells do, so that it always binds.
"""

import argparse
import gc
import time
from math import inf

import numpy as np
import simpy

from network.fair_link import FairLink
from network.fair_trunk import FairTrunk

TABLE = 65_536  # sizes and caps drawn once, so that drawing is not measured


def cost_us(
    n: int, load: float, n_transfers: int, rng: np.random.Generator, n_cells: int = 0
) -> tuple[float, float]:
    """(CPU microseconds, crossings) a transfer; `load` is capacity / sum of the caps, 0 for no
    caps.
    """
    env = simpy.Environment()
    nbytes = rng.lognormal(13, 1, TABLE).astype(int).tolist()
    caps_bps = rng.uniform(10e6, 100e6, TABLE).tolist() if load else [inf] * TABLE
    capacity_bps = load * n * sum(caps_bps) / TABLE if load else 1e9
    if n_cells:
        trunk = FairTrunk(env, 0.7 * capacity_bps)
        links = [trunk.link(capacity_bps / n_cells) for _ in range(n_cells)]
    else:
        links = [FairLink(env, capacity_bps)]
    started = 0
    finished = env.event()

    def start(_=None):
        nonlocal started
        started += 1
        if started == n + n_transfers:
            finished.succeed()
        i = started % TABLE
        links[started % len(links)].transfer(nbytes[i], caps_bps[i]).callbacks.append(start)

    for _ in range(n):
        start()
    gc.collect()
    begun_s = time.process_time()
    env.run(finished)
    cpu_s = time.process_time() - begun_s
    return cpu_s / n_transfers * 1e6, sum(link._ticket for link in links) / started - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--max", type=int, default=100_000, help="largest number of concurrent transfers"
    )
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    loads = (0, 0.1, 0.3, 0.7)
    print(
        f"{'concurrent':>10}"
        + "".join(f"{f'C = {load} caps' if load else 'no caps':>18}" for load in loads)
    )
    for n in (100, 1_000, 10_000, 100_000):
        if n <= options.max:
            cells = []
            for load in loads:
                best = min(
                    cost_us(n, load, max(20_000, n), np.random.default_rng(i))
                    for i in range(options.repeat)
                )
                cells.append(f"{best[0]:>11.1f} / {best[1]:.2f}")
            print(f"{n:>10}" + "".join(f"{cell:>18}" for cell in cells), flush=True)
    for n_cells in (1, 10, 100):
        best = min(
            cost_us(10_000, 0.5, 20_000, np.random.default_rng(i), n_cells)
            for i in range(options.repeat)
        )
        print(
            f"10000 in {n_cells} cells under an ingress that binds: {best[0]:.0f} / {best[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
