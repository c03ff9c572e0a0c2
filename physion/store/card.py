"""What accompanies named weights for people and model hubs: a model card, and what the model is built from."""

from __future__ import annotations

import json
from typing import Any

from physion.store.artifacts import Manifest
from physion.store.keys import shown
from physion.store.protocol import Store

CARD, SIZES = "README.md", "config.json"
MEASURED = {
    "steps": "optimiser steps",
    "heldout_loss_before": "held-out loss, untrained",
    "heldout_loss": "held-out loss",
    "heldout_balanced_accuracy": "held-out balanced accuracy",
}


def write_card(store: Store, prefix: str, manifest: Manifest) -> None:
    """Write `README.md` and `config.json` beside named weights.

    Both follow from the manifest, which does not list them: whoever publishes or copies the weights writes the same bytes.
    """
    sizes = {"library": "physion", "stage": manifest.stage, "model": manifest.config}
    store.write(f"{prefix}/{CARD}", card(manifest).encode())
    store.write(f"{prefix}/{SIZES}", (json.dumps(sizes, indent=1, sort_keys=True) + "\n").encode())


def card(manifest: Manifest) -> str:
    """The model card of named weights: Markdown after the front matter that model hubs read."""
    origin, stage, name = manifest.origin, manifest.stage, manifest.instance
    file = next(record.name for record in manifest.files if record.name.startswith("weights-"))
    trained = origin.get("metrics", {})
    measured = {what: trained[key] for key, what in MEASURED.items() if isinstance(trained.get(key), int | float)}
    rows = {"parameters": manifest.metrics["parameters"], **measured}
    where = {**origin, "made": manifest.created, "physion": manifest.code}
    return shown(
        "\n".join(
            [
                *("---", "library_name: physion", f"license: {json.dumps(str(origin.get('license', 'unknown')))}"),
                *("tags: [physion, slotformer, video]", "---", "", f"# {name}", ""),
                f"Weights of stage `{stage}` of physion, SlotFormer's study of the Physion benchmark ({_origin(origin)}).",
                *("", "| | |", "|---|---|"),
                *(f"| {what} | {f'{value:,}' if isinstance(value, int) else f'{value:.4g}'} |" for what, value in rows.items()),
                *(("", f"The whole study with them, on its test videos: {origin['answers']}") if "answers" in origin else ()),
                *("", "## Load", "", "In this folder:", ""),
                *("    from pathlib import Path; from physion.models.weights import load_model", ""),
                *(f'    model = load_model(Path("{file}"))', "", "In a study whose store has them:", ""),
                *(f"    physion run ... --set {option(manifest)}", ""),
                *("## Where they come from", "", "```json", json.dumps(where, indent=1, sort_keys=True), "```", ""),
            ]
        )
    )


def option(manifest: Manifest) -> str:
    """The override by which a study takes named weights: those of a readout are given for the frames that it sees."""
    mode = f".{manifest.origin['features']}" if "features" in manifest.origin else ""
    return f"{manifest.stage}.weights{mode}=pretrained/{manifest.instance}"


def _origin(origin: dict[str, Any]) -> str:
    if "file" in origin:
        return f"imported from the checkpoint `{origin['file']}`"
    return f"trained with preset `{origin['preset']}`" if "preset" in origin else "trained"
