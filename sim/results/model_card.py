"""`model/README.md`: what a trained model is, where it comes from and how it is used, as Hugging
Face's hub reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from learning.backbones.catalogue import BackboneSpec, config_of, depth_of
from sim.scenario.file import digest, resolved
from sim.simulation import Simulation

CARD = "README.md"
_TASKS = {
    "classification": "text-classification",
    "regression": "text-classification",
    "language-modelling": "text-generation",
}
_USES = {
    "peft": """from peft import PeftModel
from transformers import {auto}
{folder}
model = {auto}.from_pretrained(folder{cut})
model = PeftModel.from_pretrained(model, "peft")  # beside this card""",
    "moves.safetensors": """from transformers import AutoModelForCausalLM
from learning.next_token.speaking import SideTuned  # of mobifleet
{folder}
model = AutoModelForCausalLM.from_pretrained(folder{cut})
SideTuned.from_pretrained("moves.safetensors", "{backbone}").attach(model)  # beside this card""",
    "side_network.safetensors": """from learning.side.inference import SidePredictor  # of mobifleet

predictor = SidePredictor.load("side_network.safetensors", "{backbone}")
labels, scores = predictor.predict(["..."])""",
}


def write_model_card(
    folder: Path, sim: Simulation, found: Mapping[str, Any], versions: Mapping[str, str | None]
) -> None:
    """Into the folder that a learner has saved its model in; `found` is the run's summary."""
    folder.mkdir(exist_ok=True)
    card = model_card(sim, found, versions, {path.name for path in folder.iterdir()})
    (folder / CARD).write_text(card, encoding="utf-8")


def model_card(
    sim: Simulation,
    found: Mapping[str, Any],
    versions: Mapping[str, str | None],
    files: set[str],
) -> str:
    """Its text, for a folder with these files."""
    scenario, task = sim.scenario, sim.task
    name = f"{scenario.name}, {scenario.method.kind}"
    scores = {backbone: v for backbone, v in found["by_backbone"].items() if v is not None}
    backbones = [
        f"{name} ({spec.source}" + (f", its first {spec.layers} layers)" if spec.layers else ")")
        for name, spec in sorted(sim.costing.learned.items())
    ]
    parts = [
        f"# {name}",
        scenario.description,
        f"Trained by `{scenario.method.kind}` in a simulation, by mobifleet, of {len(sim.devices)} "
        f"devices that hold texts of {_data(sim)}.",
        f"* backbones: {', '.join(backbones)}\n"
        f"* {task.metric} on {len(task.test)} test texts at the end: "
        + (
            ", ".join(f"{backbone} {value:.4g}" for backbone, value in scores.items())
            or "not known"
        )
        + f"\n* run `{found['digest']}`, which ended: {found['ended']}\n"
        f"* versions: {', '.join(f'{of} {v}' for of, v in versions.items() if v)}",
        *_use(sim, files),
        f"## Scenario\n\nDigest `{digest(resolved(scenario))}`, seed {scenario.seed}:",
        f"```yaml\n{yaml.safe_dump(resolved(scenario), sort_keys=False).strip()}\n```",
    ]
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{_head(sim, name, scores, files)}\n---\n\n{body}\n"


def _data(sim: Simulation) -> str:
    # a name of a packaged set is more than text, which YAML would write out
    return str.__str__(sim.task.texts.name) if sim.task.texts is not None else "a stated size"


def _head(sim: Simulation, name: str, scores: Mapping[str, float], files: set[str]) -> str:
    """What the hub reads."""
    from huggingface_hub import EvalResult, ModelCardData

    task = sim.task
    return ModelCardData(
        model_name=name,
        base_model=sorted({spec.source for spec in sim.costing.learned.values()}),
        library_name="peft" if "peft" in files else "mobifleet",
        pipeline_tag=_TASKS[task.kind],
        tags=["mobifleet", "federated-learning", sim.scenario.method.kind],
        eval_results=[
            EvalResult(
                task_type=_TASKS[task.kind],
                dataset_type=_data(sim),
                dataset_name=_data(sim),
                dataset_split="test",
                metric_type=task.metric,
                metric_name=f"{task.metric} of {backbone}",
                metric_value=value,
            )
            for backbone, value in scores.items()
        ],
    ).to_yaml()


def _use(sim: Simulation, files: set[str]) -> list[str]:
    """How what is in the folder is used, where more than mobifleet's own runs use it."""
    specs = sim.costing.learned
    backbone, spec = max(specs.items(), key=lambda one: _depth(one[1]))
    values = {
        "backbone": backbone,
        "folder": _folder(spec),
        "cut": f", num_hidden_layers={spec.layers}" if spec.layers else "",
        "auto": "AutoModelForCausalLM" if sim.task.has_responses else "AutoModel",
    }
    uses = [use.format(**values) for file, use in _USES.items() if file in files]
    return ["## Use", *(f"```python\n{use}\n```" for use in uses)] if uses else []


def _folder(spec: BackboneSpec) -> str:
    """Code that says where the backbone's weights lie."""
    if spec.kind == "asset":
        import_ = "from learning.backbones.convert import model_dir  # of mobifleet"
        return f'{import_}\n\nfolder = model_dir("{spec.source}")'
    if spec.kind == "random":
        return "\nfolder = ...  # wherever you keep it: its weights were drawn by mobifleet"
    return f'\nfolder = "{spec.source}"'


def _depth(spec: BackboneSpec) -> int:
    return depth_of(config_of(spec))
