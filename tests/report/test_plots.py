import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from physion.report.metrics import evaluate_predictions
from physion.report.plots import (
    loss_curve,
    plot_accuracy,
    plot_distances,
    plot_errors,
    plot_likeness,
    plot_losses,
    plot_reliability,
    plot_roc,
    plot_scenarios,
)

NAMES = [f"v{index}" for index in range(16)]
LABELS = np.arange(16) % 3 == 0


def metrics(scenarios=("Roll", "Drape")):
    scores = np.random.default_rng(0).random((2, 16))
    return evaluate_predictions(
        NAMES, [scenarios[i % len(scenarios)] for i in range(16)], LABELS, scores, [0.5, 0.5], resamples=50
    )


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]


def curves(*ways):
    return {way: {"frames": [45, 50, 55], "by_frame": [0.1, None, 0.3]} for way in ways}


def all_plots():
    scores = np.random.default_rng(0).random((2, 16))
    errors = curves("rollout", "copied", "rollout_ordered", "copied_ordered")
    room = {"room": curves("rollout", "copied", "true", "mean")}
    drawn = {measure: {"by_frame": [1.0, 0.5, 0.7]} for measure in ("psnr", "ssim")}
    return [
        plot_accuracy({"observed": metrics(), "rollout": metrics()}, simulated=True),
        plot_scenarios({"observed": metrics()}, simulated=False),
        plot_roc(LABELS, {"rollout": scores}),
        plot_reliability({"rollout": metrics()}),
        plot_losses("train-dvae", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.1, "heldout_loss": 0.3}]),
        plot_errors({"error": errors, "watched": 55}),
        plot_distances({"agent": room, "patient": room}, 55),
        plot_likeness({"frames": [0, 5, 10], "reconstructed": drawn}),
    ]


def test_deterministic_and_fit_for_a_page():
    ids = []
    for first, second in zip(all_plots(), all_plots(), strict=True):
        assert first == second
        assert first.startswith("<svg ")
        assert "<metadata" not in first
        assert "<style" not in first
        ids.append({element.get("id") for element in ElementTree.fromstring(first).iter() if element.get("id")})
    assert len(set().union(*ids)) == sum(map(len, ids))  # plots can stand in one page


def test_references_are_named_for_what_they_are():
    assert "humans, on the official videos 74.7" in texts(plot_accuracy({"rollout": metrics()}, simulated=True))
    assert "humans 74.7" in texts(plot_accuracy({"rollout": metrics()}, simulated=False))


def test_scenarios_that_nobody_measured_people_on_and_text_that_looks_like_markup():
    found = texts(plot_scenarios({"<b>$x^2$": metrics(("<script>", "$odd$"))}, simulated=False))
    assert {"<script>", "$odd$", "<b>$x^2$"} <= set(found)
    assert "humans" not in found


def test_roc_needs_both_classes():
    with pytest.raises(ValueError, match="both classes"):
        plot_roc(np.array([True, True]), {"rollout": np.array([[0.1, 0.2]])})


def test_loss_curve_leaves_out_what_is_missing():
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None}, {"step": 3, "loss": math.nan}, {"step": 4}]
    steps, losses = loss_curve(history, "loss")
    assert steps.tolist() == [1]
    assert losses.tolist() == [3]
    assert [len(part) for part in loss_curve(history, "heldout_loss")] == [0, 0]


def test_long_histories_are_averaged():
    history = [{"step": step, "loss": 2.0 + step % 2} for step in range(10_000)]
    assert len(plot_losses("train-steve", history)) < 30_000
    assert loss_curve(history, "loss")[1].tolist() == [entry["loss"] for entry in history]


def test_losses_on_a_logarithmic_axis_have_plain_labels():
    wide = texts(plot_losses("train-steve", [{"step": step, "loss": 10 / step} for step in range(1, 101)]))
    assert {"0.1", "1", "10"} <= set(wide)
    assert not [text for text in wide if "$" in text]
    assert plot_losses("empty", []).startswith("<svg ")


def test_no_torch_and_no_pyplot():
    code = "import sys, physion.report.html; sys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
