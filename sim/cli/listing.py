"""The tables of `mobifleet list`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from rich.table import Table

from inputs.files import read_yaml
from inputs.units import format_bytes, format_seconds, format_si

# columns of sentences, which take the lines that a narrow terminal needs
PROSE = {"what it is", "licence"}


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 1))
    for name in columns:
        table.add_column(name, no_wrap=name not in PROSE)
    return table


def devices() -> Table:
    """Device profiles with their engines."""
    from devices.profile import load, names

    table = _table("device", "what it is", "memory", "engines (achieved rate, power)")
    for name in names():
        profile = load(name)
        engines = (
            f"{e.name} {format_si(e.flop_per_s, 'FLOP/s')}, {e.power.compute_w:g} W"
            for e in profile.engines.values()
        )
        table.add_row(
            name, profile.title, f"{profile.memory_bytes / 2**30:.0f} GiB", "\n".join(engines)
        )
    return table


def links() -> Table:
    """Link profiles."""
    from network.profile import load, names

    table = _table("link", "up", "down", "latency", "overhead")
    for name in names():
        p = load(name)
        rates = format_si(p.up_bps, "bit/s"), format_si(p.down_bps, "bit/s")
        table.add_row(name, *rates, format_seconds(p.latency_s), format_seconds(p.overhead_s))
    return table


def backbones() -> Table:
    """Backbones of the catalogue, with the cost of one text of 128 tokens."""
    from learning.backbones.catalogue import find, names
    from learning.cost.forward_pass import architecture

    table = _table("backbone", "what it is", "parameters", "forward, 128 tokens")
    for name, title in names().items():
        a = architecture(find(name))
        table.add_row(
            name, title, f"{a.parameters / 1e6:.1f} M", format_si(a.forward(1, 128).flop, "FLOP")
        )
    table.add_row("NAME-lK", "any of them, cut to its first K layers")
    return table


def datasets() -> Table:
    """Named data sets."""
    from learning.data.texts import names

    table = _table("data set", "what it is", "texts", "classes", "clients", "fetch")
    for info in names():
        sizes = ("" if n is None else str(n) for n in (info.texts, info.classes, info.clients))
        what = info.description + "; for language modelling" * info.has_responses
        table.add_row(info.name, what, *sizes, info.asset or "comes with a package")
    return table


def methods() -> Table:
    """Methods that a scenario may name."""
    from sim.scenario import registry

    table = _table("method", "what it is")
    for kind, entry in registry.known().items():
        table.add_row(kind, _about(kind, entry.method.__doc__ or ""))
    return table


def _about(kind: str, docstring: str) -> str:
    """What a class says of the method that it is under this name: its paragraph that begins with
    the name and a colon, where it has several, or else its first.
    """
    paragraphs = [" ".join(one.split()) for one in docstring.split("\n\n")]
    own = [one.removeprefix(f"{kind}: ") for one in paragraphs if one.startswith(f"{kind}: ")]
    return (own or paragraphs)[0]


def partitions() -> Table:
    """Partitions of texts over devices, and functions of one's own that are registered."""
    from sim.scenario import partitions
    from sim.scenario.schema import AnyPartition

    table = _table("partition", "what it is")
    for settings in get_args(AnyPartition):
        [kind] = get_args(settings.model_fields["kind"].annotation)
        table.add_row(kind, " ".join((settings.__doc__ or "").split()))
    for name, function in partitions.known().items():
        what = (function.__doc__ or "").split("\n\n")[0]
        table.add_row(f"own, function: {name}", " ".join(what.split()))
    return table


def scenarios() -> Table:
    """Shipped scenarios."""
    from sim.scenario import SCENARIOS

    table = _table("scenario", "what it is")
    for path in sorted(Path(SCENARIOS).glob("*.yaml")):
        table.add_row(path.stem, str(read_yaml(path).get("description", "")))
    return table


def assets() -> Table:
    """What `mobifleet fetch` brings, and what is here."""
    from learning.backbones.assets import status

    table = _table("asset", "what it is", "download", "licence", "here")
    for line in status():
        a = line.asset
        here = "yes" if line.present else "no"
        table.add_row(a.name, a.description, format_bytes(a.download_bytes), a.licence, here)
    return table


def unseen(what: str) -> list[str]:
    """What to say of files of installed packages whose names are ours."""
    match what:
        case "devices":
            from devices.profile_file import PROFILES as shipped
        case "links":
            from network.profile import PROFILES as shipped
        case "datasets":
            from learning.data.texts import PACKAGED as shipped
        case _:
            return []
    files = shipped.unseen()
    return [f"{path} is never read: {path.stem} is a name of mobifleet's" for path in files]


LISTINGS = {
    f.__name__: f
    for f in (devices, links, backbones, datasets, methods, partitions, scenarios, assets)
}
