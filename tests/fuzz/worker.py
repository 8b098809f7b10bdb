"""Feeds the command line with damaged inputs, in one process, and prints what came of each as a
line of JSON.

    python worker.py KIND:COUNT[,KIND:COUNT...] SEED FOLDER

An input is a valid one changed at random: scenario trees with values of the wrong kind, bytes of
files flipped, cut, repeated, encoded otherwise. Each may take `MOST_CPU_S` of processor time. What
is opened for writing is noted by an audit hook; everything but the run's own folder, the cache and
the terminal's is reported.
"""

import contextlib
import csv
import functools
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import typer
import yaml

MOST_CPU_S = 20
REPOSITORY = Path(__file__).parents[2]
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    10**12,
    10**30,
    10**400,
    -(10**18),
    0.0,
    -0.5,
    1e-308,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "²",
    "١٢",
    "--5",
    "1e3",
    "1e400",
    "nan",
    "0x10",
    "20 Mbit/s",
    "3 furlongs",
    "-1 s",
    "1e30 s",
    "/dev/zero",
    "/dev/null",
    "../../x",
    "~",
    "~nobody/x",
    "$HOME",
    "a\0b",
    "a\nb",
    "é" * 300,
    "x" * 100_000,
    "\ud800",
    "con",
    "file.yaml",
    "tiny.yaml",
    [],
    [None],
    [[]],
    [1, "a", None],
    {},
    {"": 1},
    {"kind": "x"},
    {"a": {"b": {"c": []}}},
    [[[[[[[[1]]]]]]]],
    "!!python/object:os.system",
]
TEXTS = [f"{'abc'[i % 3]}{i % 4} {'abc'[i % 3]}{i % 5} words of text {i}" for i in range(60)]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
BASE = {
    "name": "tiny",
    "task": {"dataset": {"path": "texts.csv"}, "train": 40, "test": 15, "max_tokens": 16},
    "fleet": [
        {"count": 2, "device": "jetson-tx2", "backbone": "random-bert", "link": "lte"},
        {
            "count": 1,
            "device": {"raspberry-pi-5": 1, "phone-2022-flagship": 2},
            "backbone": "random-bert-l1",
            "link": "wifi-home",
        },
    ],
    "server": {"device": "a100", "ingress": "1 Gbit/s", "step_overhead": "3 ms"},
    "method": {
        "kind": "fed-mobillm",
        "replay": 5,
        "update_share_on_arrival": 1,
        "server_batch": 8,
        "device_batch": 4,
    },
    "stop": {"target": 0.9, "horizon": "1 h"},
}
SECTIONS = {
    "arrivals": {"kind": "list", "times": ["0 s", "1 s", "500 ms"]},
    "links": {"vary": True, "tcp": True},
    "cells": {
        "home": {"kind": "wifi", "up": "8 Mbit/s", "down": "9 Mbit/s"},
        "b": {"kind": "cellular", "gain": 1.2},
    },
    "traces": {
        "ingress": {"times": ["0 s", "5 s"], "capacity": ["1 Mbit/s", "0 bit/s"], "period": "10 s"}
    },
    "devices": {
        "thermal": True,
        "battery": {"initial": [0.1, 0.8], "stop_below": 0.2, "resume_at": 0.25},
    },
    "availability": {
        "kind": "diurnal",
        "rhythm": "charging-wifi-locked",
        "starts_at": "18 h",
        "never_ready": 0.1,
    },
    "dropout": {"times": ["1 s", "2 s", "3 s"]},
    "fresh_data": {"kind": "present"},
    "cost_as": {"backbone": "roberta-base", "tokens": 64},
    "backbones": {
        "own": {
            "random": {
                "model_type": "bert",
                "vocab_size": 300,
                **SIZES,
                "max_position_embeddings": 64,
            }
        }
    },
    "compare": {
        "methods": {"a": {"kind": "fed-mobillm"}, "b": {"kind": "fedavg-lora", "rounds": 2}},
        "target": 0.5,
    },
}
METHODS = (
    "fedavg-lora",
    "fedbuff",
    "fedasync",
    "pae-mobillm",
    "fwdllm",
    "spry",
    "fedmezo",
    "mobillm",
    "splitfed-v1",
)
SIGNS = (b"\0", b"\xff", b'"', b"\n", b",", b";", b"\t", b"{", b"[", b"\xef\xbb\xbf")
ENCODINGS = ("utf-16", "utf-32", "latin-1", "utf-8-sig")
SWAPS = ((b",", b";"), (b"\n", b"\r\n"), (b"\n", b"\r"), (b"1", b"-1"), (b":", b"="))


# --- changing what is valid


def changed(rng: random.Random, tree, times: int):
    """A tree of lists and mappings with so many places changed."""
    for _ in range(times):
        spots = list(_spots(tree))
        holder, key = rng.choice(spots)
        match rng.randrange(6):
            case 0 if isinstance(holder, dict):
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(["x", "Kind", "", "a.b", "0", str(key) + "s"])] = holder[key]
            case 2:
                other, its = rng.choice(spots)
                with contextlib.suppress(KeyError, IndexError):
                    holder[key] = json.loads(json.dumps(other[its]))
            case 3:
                holder[key] = [holder[key]] if rng.random() < 0.5 else {str(key): holder[key]}
            case _:
                holder[key] = rng.choice(ODD)
        if not any(_spots(tree)):
            break
    return tree


def _spots(tree):
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in list(items):
        yield tree, key
        yield from _spots(value)


def damaged(rng: random.Random, raw: bytes) -> bytes:
    """Bytes with something flipped, cut, repeated, put in, or encoded otherwise."""
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(9):
            case 0:
                raw = raw[:at]
            case 1:
                raw = raw[:at] + rng.randbytes(rng.randrange(1, 9)) + raw[at + rng.randrange(9) :]
            case 2:
                raw = raw[:at] + raw[at : at + 40] * rng.choice([2, 50]) + raw[at:]
            case 3:
                raw = raw[:at] + rng.choice(SIGNS) + raw[at:]
            case 4:
                raw = raw.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")
            case 5:
                raw = raw.replace(*rng.choice(SWAPS))
            case 6:
                lines = raw.splitlines(True)
                rng.shuffle(lines)
                raw = b"".join(lines)
            case 7:
                odd = rng.choice([o for o in ODD if isinstance(o, str | int | float)])
                raw = raw[:at] + str(odd).encode("utf-8", "replace") + raw[at + rng.randrange(9) :]
            case 8:
                raw = raw if rng.random() < 0.9 else b""
    return raw


# --- one input of each kind: files in the working folder, and the arguments of the command line


def scenario_text(rng: random.Random, changes: int, **sections) -> bytes:
    """A scenario with some sections, as YAML, changed in so many places."""
    tree = json.loads(json.dumps({**BASE, **sections}))
    for name in rng.sample(sorted(SECTIONS), rng.randrange(4)):
        tree[name] = json.loads(json.dumps(SECTIONS[name]))
    if rng.random() < 0.4:
        tree["method"] = {"kind": rng.choice(METHODS)}
    tree = changed(rng, tree, changes) if changes else tree
    try:
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode(
            "utf-8", "surrogatepass"
        )
    except (ValueError, yaml.YAMLError):  # a lone surrogate
        return json.dumps(tree).encode()


def scenarios(rng: random.Random) -> list[str]:
    """Damaged scenario files: checked, now and then run dry."""
    raw = scenario_text(rng, rng.choice([1, 1, 2, 4]))
    Path("s.yaml").write_bytes(damaged(rng, raw) if rng.random() < 0.3 else raw)
    if rng.random() < 0.7:
        return ["check", "s.yaml"]
    return ["run", "s.yaml", "--dry", "--quiet", "--no-figures", "--out", "run"]


def data(rng: random.Random) -> list[str]:
    """Damaged files of texts in every format."""
    suffix = rng.choice([".csv", ".csv", ".tsv", ".jsonl", ".jsonl", ".parquet", ".txt", ".json"])
    labels = rng.choice(
        [
            list("abc"),
            [1, 2, 3],
            [1.0, 2.0, None],
            [True, False, True],
            ["01", "1", " 1"],
            [[1], {}, "x"],
        ]
    )
    rows = [{"text": text, "label": labels[i % 3]} for i, text in enumerate(TEXTS)]
    for _ in range(rng.randrange(3)):
        rng.choice(rows)[rng.choice(["text", "label", "other"])] = rng.choice(ODD)
    out = io.StringIO()
    if suffix in (".jsonl", ".json"):
        out.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        delimiter = "\t" if suffix == ".tsv" else ","
        writer = csv.DictWriter(out, ["text", "label"], extrasaction="ignore", delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    raw = out.getvalue().encode("utf-8", "surrogatepass")
    if suffix == ".parquet":
        raw = _parquet(rng, rows)
    Path(f"d{suffix}").write_bytes(damaged(rng, raw) if rng.random() < 0.7 else raw)
    given = {"path": f"d{suffix}"}
    if rng.random() < 0.2:
        key = rng.choice(
            ["text_b", "client", "test", "text", "label", "delimiter", "encoding", "header"]
        )
        given[key] = rng.choice(["text", "label", "nothing", f"d{suffix}", ";", "latin-1", False])
    task = {"dataset": given, "max_tokens": 16} | (
        {"train": 20, "test": 10} if rng.random() < 0.5 else {}
    )
    Path("s.yaml").write_bytes(scenario_text(rng, 0, task=task))
    return ["check", "s.yaml"]


def _parquet(rng: random.Random, rows: list[dict]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    words, classes = (
        [str(row[name]).encode("utf-8", "replace").decode() for row in rows]
        for name in ("text", "label")
    )
    texts = rng.choice(
        [
            pa.array(words),
            pa.array(words, pa.large_string()),
            pa.array([word.encode() for word in words]),
            pa.array(words).dictionary_encode(),
            pa.array([[word] for word in words]),
            pa.array([{"role": word} for word in words]),
        ]
    )
    numbers = pa.array([i % 3 for i in range(len(rows))])
    kinds = [
        pa.string(),
        pa.int64(),
        pa.float64(),
        pa.bool_(),
        pa.decimal128(25, 2),
        pa.timestamp("s"),
        pa.date32(),
    ]
    label = rng.choice(kinds)
    narrow = numbers.cast(pa.int32()) if pa.types.is_date(label) else numbers
    labels = rng.choice([narrow.cast(label), pa.nulls(len(rows)), pa.array(classes)])
    out = io.BytesIO()
    parquet.write_table(pa.table({"text": texts, "label": labels}), out)
    return out.getvalue()


def series(rng: random.Random) -> list[str]:
    """Damaged traces, throughput tables, iperf3 results, profiles."""
    trace = b"time_s,bit_per_s\n0,1000000\n5,2000000\n10,500000\n"
    table = "t_s,up\n" + "".join(f"{t},{20 + t % 7}\n" for t in range(200))
    sums = [
        {"sum": {"start": t, "end": t + 1, "seconds": 1, "bits_per_second": 2e7}} for t in range(12)
    ]
    start = {"test_start": {"num_streams": 1, "reverse": 0}, "timestamp": {"time": "x"}}
    iperf = {
        "start": start,
        "intervals": sums,
        "end": {"streams": [{"sender": {"min_rtt": 20000}}]},
    }
    link = REPOSITORY / "network" / "profiles" / "lte.yaml"
    device = REPOSITORY / "devices" / "profiles" / "raspberry-pi-5.yaml"
    fleet = json.loads(json.dumps(BASE["fleet"][:1]))
    match rng.randrange(5):
        case 0:
            Path("t.csv").write_bytes(damaged(rng, trace))
            fleet[0][rng.choice(["trace", "down_trace"])] = "t.csv"
        case 1:
            Path("u.csv").write_bytes(damaged(rng, table.encode()))
            column = rng.choice([[], ["--column", "up"]])
            return [
                "calibrate",
                "link",
                "--from",
                "u.csv",
                "--like",
                "lte",
                "--out",
                "run/link",
                *column,
            ]
        case 2:
            tree = changed(rng, iperf, rng.randrange(4))
            raw = json.dumps(tree).encode()
            Path("i.json").write_bytes(damaged(rng, raw) if rng.random() < 0.4 else raw)
            return ["calibrate", "link", "--from", "i.json", "--like", "lte", "--out", "run/link"]
        case 3:
            Path("l.yaml").write_bytes(damaged_yaml(rng, link))
            fleet[0]["link"] = "l.yaml"
        case 4:
            Path("p.yaml").write_bytes(damaged_yaml(rng, device))
            fleet[0]["device"] = "p.yaml"
    Path("s.yaml").write_bytes(scenario_text(rng, 0, fleet=fleet))
    return ["check", "s.yaml"]


def damaged_yaml(rng: random.Random, file: Path) -> bytes:
    """A profile with places of its tree changed, or bytes of its file."""
    if rng.random() < 0.5:
        return damaged(rng, file.read_bytes())
    tree = changed(rng, yaml.safe_load(file.read_text(encoding="utf-8")), rng.randrange(1, 4))
    return json.dumps(tree).encode()


def models(rng: random.Random) -> list[str]:
    """Damaged model folders: configuration, weights, tokenizer."""
    shutil.rmtree("model", ignore_errors=True)
    shutil.copytree(_model(), "model")
    names = [
        "config.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    file = Path("model") / rng.choice(names)
    match rng.randrange(4):
        case 0:
            file.unlink(missing_ok=True)
        case 1 | 2 if file.suffix == ".json" and file.exists():
            tree = changed(rng, json.loads(file.read_text(encoding="utf-8")), rng.randrange(1, 4))
            file.write_text(json.dumps(tree), encoding="utf-8")
        case _:
            file.write_bytes(damaged(rng, file.read_bytes() if file.exists() else b""))
    fleet = [{**BASE["fleet"][0], "backbone": rng.choice(["own", "own-l1"])}]
    Path("s.yaml").write_bytes(
        scenario_text(rng, 0, fleet=fleet, backbones={"own": {"path": "model"}})
    )
    return ["check", "s.yaml"]


def _model() -> Path:
    """A BERT of 2 layers x 16 with a word tokenizer, made once."""
    folder = Path("..").resolve() / "valid-model"
    if not folder.is_dir():
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

        torch.manual_seed(0)
        words = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
        tokenizer = Tokenizer(
            models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
        ).save_pretrained(folder)
        BertModel(
            BertConfig(vocab_size=len(words), max_position_embeddings=64, **SIZES)
        ).save_pretrained(folder)
    return folder


def runs(rng: random.Random) -> list[str]:
    """Damaged run folders: resumed, plotted."""
    shutil.rmtree("run", ignore_errors=True)
    shutil.copytree(_run(), "run")
    file = rng.choice(sorted(path for path in Path("run").iterdir() if path.is_file()))
    match rng.randrange(4):
        case 0:
            file.unlink()
        case 1 | 2 if file.suffix == ".json":
            tree = changed(rng, json.loads(file.read_text(encoding="utf-8")), rng.randrange(1, 4))
            file.write_text(json.dumps(tree), encoding="utf-8")
        case _:
            file.write_bytes(damaged(rng, file.read_bytes()))
    line = b'{"key": "a", "scores": {"random-bert": 0.5}, "loss": 1.0}\n'
    (Path("run") / "journal.jsonl").write_bytes(damaged(rng, line * 3))
    if rng.random() < 0.15:
        return ["plot", "run", "--out", "run/figures"]
    return ["run", "s.yaml", "--resume", "--dry", "--quiet", "--no-figures", "--out", "run"]


def _run() -> Path:
    """A dry run of the valid scenario that says it was interrupted, made once."""
    folder = Path("..").resolve() / "valid-run"
    Path("s.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    if not folder.is_dir():
        call(["run", "s.yaml", "--dry", "--quiet", "--no-figures", "--out", str(folder)])
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        (folder / "manifest.json").write_text(
            json.dumps({**manifest, "status": "interrupted"}), encoding="utf-8"
        )
    return folder


# --- feeding and watching


class TooLong(BaseException):
    """The processor time of one input is used up."""


def too_long(number, frame):
    """Handler of the timer of processor time."""
    raise TooLong


def call(argv: list[str]) -> tuple[int, str]:
    """Exit code and what was said on standard error; 1 and the traceback for what gets out."""
    from sim.cli import main as cli

    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["mobifleet", *argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code or 0, err.getvalue()
        except BaseException:
            return 1, traceback.format_exc()
    return 0, err.getvalue()


def main(counts: list[tuple[str, int]], seed: int, folder: Path) -> None:
    """Feed so many inputs of each kind; a line of JSON each."""
    work, said = folder / "work", sys.stdout
    work.mkdir()
    os.chdir(work)
    with open("texts.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("text", "label"), *((text, "abc"[i % 3]) for i, text in enumerate(TEXTS))]
        )
    wrote, watching = [], False

    def note(event: str, args: tuple) -> None:
        if not watching:
            return
        opened = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event == "os.mkdir" and os.path.isdir(args[0]):
            return  # it is there, so nothing comes of it
        if opened or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            wrote.append(args[0])

    sys.addaudithook(note)
    signal.signal(signal.SIGPROF, too_long)
    typer.main.get_command = functools.cache(
        typer.main.get_command
    )  # a process has one command line
    for kind, number in ((kind, number) for kind, count in counts for number in range(count)):
        rng = random.Random(f"{kind}/{seed}/{number}")
        shutil.rmtree("run", ignore_errors=True)
        shutil.rmtree("runs", ignore_errors=True)
        argv = globals()[kind](rng)
        wrote.clear()
        before, begin_s = set(os.listdir()), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
        watching = True
        try:
            code, err = call(argv)
        finally:
            watching = False
            signal.setitimer(signal.ITIMER_PROF, 0)
        places = (
            "run",
            "runs",
            os.environ["MOBIFLEET_CACHE"],
            os.environ["MPLCONFIGDIR"],
            tempfile.gettempdir(),
            "/dev",
            "/proc/self/clear_refs",  # lets the peak of memory begin anew
        )
        allowed = tuple(str(Path(place).resolve()) for place in places)
        strays = {
            str(Path(path).resolve())
            for path in wrote
            if isinstance(path, str) and "\0" not in path
        }
        strays = {path for path in strays if not path.startswith(allowed)}
        strays |= set(os.listdir()) - before - {"run", "runs"}
        line = {
            "kind": kind,
            "number": number,
            "argv": argv,
            "code": code,
            "err": err[-3000:],
            "strays": sorted(strays),
        }
        line["cpu_s"] = time.process_time() - begin_s
        print(json.dumps(line), file=said, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak_bytes": peak}), file=said, flush=True)


if __name__ == "__main__":
    kinds = (one.split(":") for one in sys.argv[1].split(","))
    main([(kind, int(count)) for kind, count in kinds], int(sys.argv[2]), Path(sys.argv[3]))
