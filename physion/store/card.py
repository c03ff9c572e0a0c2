"""What accompanies named weights for people and model hubs: a model card, and what the model is built from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from physion.store.artifacts import Manifest
from physion.store.keys import shown
from physion.store.protocol import Store

CARD, SIZES = "README.md", "config.json"
MEASURED = {
    "parameters": "parameters",
    "steps": "optimizer steps",
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
    origin = manifest.origin
    trained = {"parameters": manifest.metrics["parameters"], **origin.get("metrics", {})}
    rows = {what: trained[key] for key, what in MEASURED.items() if isinstance(trained.get(key), int | float)}
    where = {**origin, "made": manifest.created, "physion": manifest.code}
    text = Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    template = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)  # noqa: S701 (Markdown)
    return shown(
        template.from_string(text).render(
            name=manifest.instance,
            stage=manifest.stage,
            license=str(origin.get("license", "unknown")),
            made=_made(origin),
            rows={what: f"{value:,}" if isinstance(value, int) else f"{value:.4g}" for what, value in rows.items()},
            answers=origin.get("answers"),
            file=next(record.name for record in manifest.files if record.name.startswith("weights-")),
            option=option(manifest),
            where=json.dumps(where, indent=1, sort_keys=True),
        )
    )


def option(manifest: Manifest) -> str:
    """The override by which a study takes named weights: those of a readout are given for the frames that it sees."""
    mode = f".{manifest.origin['features']}" if "features" in manifest.origin else ""
    return f"{manifest.stage}.weights{mode}=pretrained/{manifest.instance}"


def _made(origin: dict[str, Any]) -> str:
    if "file" in origin:
        return f"imported from the checkpoint `{origin['file']}`"
    return f"trained with preset `{origin['preset']}`" if "preset" in origin else "trained"
