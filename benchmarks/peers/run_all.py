"""Every peer in an environment of its own, one after the other, round and round:
python benchmarks/peers/run_all.py FOLDER [--repeat 3] [--only pfl,mobifleet] [--out FILE]

FOLDER gets the environments, about 1.5 GB each; what is there is used again. mobifleet runs in the
environment of this interpreter. What does not install or run is kept with its last line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "peers.json"
PEERS = {  # what is shown: (environment and script, variables)
    "mobifleet": ("mobifleet", {}),
    "pfl": ("pfl", {}),
    "fedlab": ("fedlab", {}),
    "flgo": ("flgo", {}),
    "appfl": ("appfl", {}),
    "flower": ("flower", {}),
}
# of what these name not all goes together (globus-compute-endpoint wants click < 8.2,
# huggingface-hub more): their requirements are what is needed here
WITHOUT_ITS_OWN = {"appfl"}
ROUNDS = ("tiny=11", "transformer=3")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Install, measure, write after each repetition, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--rounds", nargs="+", default=ROUNDS, metavar="MODEL=ROUNDS")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(argv)
    found: dict[str, Any] = {"machine": machine(), "rounds": list(given.rounds)}
    found |= {"failed": {}, "runs": {}}
    for repetition in range(given.repeat):
        for peer in given.only.split(","):
            if peer in found["failed"]:
                continue
            try:
                ran = measured(peer, given.folder, given.rounds)
            except Failed as failure:
                found["failed"][peer] = str(failure)
                continue
            found["runs"].setdefault(peer, []).append(ran)
            print(repetition, peer, json.dumps(ran), flush=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return found


class Failed(Exception):
    """Something that was started ended badly."""


def machine() -> dict[str, Any]:
    """What it is computed on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    python = platform.python_version()
    return {"processor": model, "cores": os.cpu_count(), "python": python}


def measured(peer: str, folder: Path, rounds: Sequence[str]) -> dict[str, Any]:
    """What its script prints, and the load of the machine then."""
    name, variables = PEERS[peer]
    python = sys.executable if name == "mobifleet" else environment(name, folder)
    how = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
    how.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling is not what is measured
    if name == "mobifleet":
        how["PYTHONPATH"] = str(HERE.parents[1])
    said = started([str(python), str(HERE / f"{name}_.py"), *rounds], how)
    return {**json.loads(said.splitlines()[-1]), "load": round(os.getloadavg()[0], 1)}


def environment(name: str, folder: Path) -> Path:
    """The interpreter of an environment, which is made where it is not there."""
    place = folder / name
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = place / "installed"
    if not done.exists():
        venv.create(place, with_pip=True)
        peer, *others = (HERE / "requirements" / f"{name}.txt").read_text().split()
        calls = [["--no-deps", peer], others] if name in WITHOUT_ITS_OWN else [[peer, *others]]
        for packages in calls:
            started([str(python), "-m", "pip", "install", *packages], dict(os.environ))
        done.touch()
    return python


def started(command: list[str], variables: dict[str, str], timeout_s: float = 1200) -> str:
    """What a command prints; raises Failed with the last line of its errors."""
    try:
        done = subprocess.run(
            command,
            env=variables,
            cwd=HERE,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"did not end in {timeout_s:.0f} s") from None
    if done.returncode or not done.stdout.strip():
        raise Failed((done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1])
    return done.stdout


def table(found: dict[str, Any]) -> str:
    """A row a peer and model: medians over the repetitions."""
    lines = [
        "| | version | model | ms a client update | plain loop beside it "
        "| above it (least to most) | times the plain loop's | first round, s | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in [part.partition("=")[0] for part in found["rounds"]]:
        for peer, runs in found["runs"].items():
            of = [run["models"][model] for run in runs]
            own = [one["cpu"]["ms"] for one in of]
            plain = [statistics.mean(one["plain_cpu_ms"]) for one in of]
            above = [a - b for a, b in zip(own, plain, strict=True)]
            ratios = [a / b for a, b in zip(own, plain, strict=True)]
            cells = [
                *(peer, runs[0]["version"], model),
                *(f"{statistics.median(x):.1f}" for x in (own, plain)),
                f"{statistics.median(above):.1f} ({min(above):.1f} to {max(above):.1f})",
                f"{statistics.median(ratios):.2f}",
                f"{statistics.median(one['cpu']['first_s'] for one in of):.1f}",
                f"{max(run['peak_rss_mb'] for run in runs)}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {peer} | | did not run: {w} | | | | | | |" for peer, w in found["failed"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
