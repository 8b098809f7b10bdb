"""Cost of a transfer on a fair link: python benchmarks/fair_link.py [--max 100000] [--repeat 3]

n transfers are always under way: each that ends starts another. Prints microseconds of CPU time a transfer, SimPy
included, best of several repetitions: without caps, and with caps uniform in 10 .. 100 Mbit/s where the link carries
10, 30 and 70 % of them together. After the slash: how many times a transfer crossed the water level on average.
"""

import argparse
import gc
import time
from math import inf

import numpy as np
import simpy

from network.fair_link import FairLink

TABLE = 65_536  # sizes and caps drawn once, so that drawing is not measured


def cost_us(n: int, load: float, n_transfers: int, rng: np.random.Generator) -> tuple[float, float]:
    """(CPU microseconds, crossings) a transfer; `load` is capacity / sum of the caps, 0 for no caps."""
    env = simpy.Environment()
    nbytes = rng.lognormal(13, 1, TABLE).astype(int).tolist()
    caps_bps = rng.uniform(10e6, 100e6, TABLE).tolist() if load else [inf] * TABLE
    link = FairLink(env, load * n * sum(caps_bps) / TABLE if load else 1e9)
    started = 0
    finished = env.event()

    def start(_=None):
        nonlocal started
        started += 1
        if started == n + n_transfers:
            finished.succeed()
        i = started % TABLE
        link.transfer(nbytes[i], caps_bps[i]).callbacks.append(start)

    for _ in range(n):
        start()
    gc.collect()
    begun_s = time.process_time()
    env.run(finished)
    cpu_s = time.process_time() - begun_s
    return cpu_s / n_transfers * 1e6, link._ticket / started - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max", type=int, default=100_000, help="largest number of concurrent transfers")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    loads = (0, 0.1, 0.3, 0.7)
    print(f"{'concurrent':>10}" + "".join(f"{f'C = {load} caps' if load else 'no caps':>18}" for load in loads))
    for n in (100, 1_000, 10_000, 100_000):
        if n <= options.max:
            cells = []
            for load in loads:
                best = min(cost_us(n, load, max(20_000, n), np.random.default_rng(i)) for i in range(options.repeat))
                cells.append(f"{best[0]:>11.1f} / {best[1]:.2f}")
            print(f"{n:>10}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
