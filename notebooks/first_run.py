# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first run, read with pandas
#
# We run the shipped `quickstart` with fewer texts, look at its figures, and ask two questions of
# the tables that a run leaves behind: who are the stragglers, and what do bytes buy? It needs
# `mobifleet fetch` (once) and the `notebooks` extra. Open it as a notebook with `jupytext --to
# ipynb notebooks/first_run.py`.

# %%
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd
from IPython.display import Image

import mobifleet
from sim.views.plots import draw

# %% [markdown]
# ## Run
#
# The overrides are those of `mobifleet run quickstart --set task.train=800 --set task.test=300
# --set evaluate_every=10`; every one is checked like the file.

# %%
overrides = {"task.train": 800, "task.test": 300, "evaluate_every": 10}
scenario = mobifleet.load("quickstart", overrides)
run = mobifleet.run(scenario, out=Path(mkdtemp()) / "first_run", figures=False)
{name: run.summary[name] for name in ("ended", "virtual_time_s", "final", "by_backbone", "totals")}

# %% [markdown]
# ## Look
#
# The timeline: each device computes a forward pass and uploads, batch by batch, and is done; the
# server trains whenever enough has landed, and on what is left of its budget at the end.

# %%
figures = {file.stem: str(file) for file in draw(run, run.path / "figures")}
Image(figures["timeline"])

# %%
Image(figures["accuracy"])

# %% [markdown]
# ## Who are the stragglers?
#
# A device is at work from joining to finishing. Nothing waits for a straggler in this method, so
# being one costs nobody else any time. Divided by the texts it holds, the time at work says
# whether a device is slow or just has a lot to do.

# %%
devices = run.devices().to_pandas()
devices["at_work_s"] = devices["finished_at_s"] - devices["joined_at_s"]
devices["ms_a_text"] = 1000 * devices["at_work_s"] / devices["samples"]
columns = ["device", "device_class", "link", "backbone", "samples", "at_work_s", "ms_a_text"]
devices.nlargest(5, "at_work_s")[columns].round(3)

# %% [markdown]
# What do they spend that time on? The spans know: one row for every stretch of computing,
# uploading, downloading.

# %%
spans = run.spans().to_pandas()
spans["seconds"] = spans["end_s"] - spans["start_s"]
spent = spans.merge(devices[["device", "device_class"]], left_on="actor", right_on="device")
spent_s = spent.pivot_table(index="device_class", columns="kind", values="seconds", aggfunc="sum")
texts = devices.groupby("device_class")["samples"].sum()
spent_s.div(texts, axis="index").mul(1000).round(2)  # ms a text

# %% [markdown]
# ## What do bytes buy?
#
# Every evaluation notes the accuracy and the bytes that had been sent by then. Within the
# uploads, accuracy grows with bytes; after the last of them the server goes on with what it has
# cached, and accuracy grows at no bytes at all.

# %%
metrics = run.metrics().to_pandas()
fleet = metrics[metrics["group"] == ""]
curve = fleet.pivot_table(index="time_s", columns="name", values="value", aggfunc="last")
curve["uplink_MB"] = curve["uplink_bytes"] / 1e6
curve["fraction_sent"] = curve["uplink_bytes"] / curve["uplink_bytes"].max()
best_by_bytes = curve.groupby(
    pd.cut(curve["fraction_sent"], [0, 0.25, 0.5, 0.75, 0.999, 1]), observed=True
)
best_by_bytes.agg(
    uplink_MB=("uplink_MB", "max"), best_accuracy=("accuracy", "max"), looks=("accuracy", "size")
)

# %% [markdown]
# And for each class of device: what it sent, and what it drew from its battery or its socket.

# %%
by_class = devices.groupby("device_class").agg(
    devices=("device", "size"),
    texts=("samples", "sum"),
    kB=("uplink_bytes", "sum"),
    joules=("energy_j", "sum"),
)
by_class["kB"] /= 1000
by_class.assign(
    kB_a_text=by_class["kB"] / by_class["texts"],
    joules_a_text=by_class["joules"] / by_class["texts"],
).round(3)
