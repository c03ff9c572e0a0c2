"""A study as a notebook sees it."""

import re
import subprocess
import sys
import unittest.mock
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import physion
from physion.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_importing_the_package_loads_neither_torch_nor_numpy():
    program = "import sys, physion; print([name for name in ('torch', 'numpy', 'pydantic', 'typer') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_type_checkers_read_its_types():
    assert (Path(physion.__file__).parent / "py.typed").is_file()  # PEP 561: without it they take everything for Any


def test_opening_a_study_loads_no_torch(preset, finished):
    program = (
        f"import sys, physion; s = physion.open({str(finished)!r}, {preset!r}); s.slots('test'); print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout == "False\n", ended.stderr


def test_the_page_runs_from_top_to_bottom(preset, finished, tmp_path, monkeypatch):
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    opened = 'physion.open("runs/demo", preset="demo")'
    assert code.count(opened) == 1
    assert code.count('study.model("isa")') == 1  # demo's; the preset of the tests trains the other
    code = code.replace(opened, f"physion.open({str(finished)!r}, preset={preset!r})").replace('"isa"', '"steve"')
    notebook = {}
    exec(code, notebook)
    study, observed = notebook["study"], notebook["study"].config.rollout.observed
    assert notebook["frames"].dtype == np.uint8
    assert notebook["slots"].shape == notebook["rollout"].shape
    assert not notebook["error"][:observed].any()
    assert notebook["error"][observed:].all()
    frames, masks = notebook["frames"], notebook["masks"]
    assert masks.shape == (len(frames), notebook["slots"].shape[1], *frames.shape[1:3])
    np.testing.assert_allclose(masks.sum(1), 1, atol=1e-5)
    assert (tmp_path / "rollout.png").stat().st_size > 1000
    assert set(study.metrics["modes"]) == {"observed", "rollout", "full"}
    assert len(notebook["predictions"]) == len(notebook["videos"]) == len(study.slots("test"))
    assert type(notebook["isa"]).__name__ == "STEVE"
    assert not notebook["readout"].training


def test_rows_for_trackers(preset, finished):
    """The code of docs/training.md, with stand-ins for the two trackers, which are not installed."""
    (code,) = re.findall(r"```python\n(.*?)```", (PAGE.parent / "training.md").read_text(), re.DOTALL)
    opened = 'physion.open("runs/gpu", preset="gpu")'
    assert code.count(opened) == 1
    tracker, logged = unittest.mock.Mock(), unittest.mock.Mock()
    exec(
        code.replace(opened, f"physion.open({str(finished)!r}, preset={preset!r})"),
        {"mlflow": tracker, "run": logged},
    )
    assert len(tracker.log_metrics.mock_calls) == len(logged.log.mock_calls) > 3
    assert all(type(value) in (int, float) for call in logged.log.mock_calls for value in call.args[0].values())
    steps = [call.kwargs["step"] for call in tracker.log_metrics.mock_calls]
    assert steps == sorted(steps)


def test_predictions_have_types(preset, finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    study = physion.open(str(finished), preset)
    rows = study.predictions()
    assert [(row["video"], row["label"]) for row in rows] == [(video.name, video.label) for video in study.videos("test")]
    assert all(0 <= row["rollout-0"] <= 1 for row in rows)


def test_predictions_are_a_data_frame_where_pandas_is(preset, finished):
    table = physion.open(str(finished), preset).predictions()
    assert table["label"].dtype == bool


def test_a_study_in_either_kind_of_store_opens_alike(preset, finished, study_store, tmp_path):
    here, there = physion.open(str(finished), preset), physion.open(study_store.uri, preset, cache=tmp_path / "cache")
    assert there.videos("test") == here.videos("test")
    video = here.videos("test")[0].name
    for what in ("frames", "slots", "rollout", "masks"):
        np.testing.assert_array_equal(getattr(there, what)("test")[video], getattr(here, what)("test")[video])
    assert there.metrics == here.metrics
    assert there.predictions().equals(here.predictions())
    weights = here.model("steve").state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in there.model("steve").state_dict().items())
    assert there.artifact("train-steve").manifest == here.artifact("train-steve").manifest
    assert there.artifact("train-steve").names() == here.artifact("train-steve").names()
    assert (tmp_path / "cache").exists() == study_store.uri.startswith("s3:")


def test_mistakes_are_named(preset, finished, tmp_path):
    study = physion.open(str(finished), preset)
    with pytest.raises(ConfigError, match="did you mean 'frames-test'"):
        study.frames("tset")
    with pytest.raises(KeyError, match="no video 'nothing'"):
        study.slots("test")["nothing"]
    with pytest.raises(ConfigError, match=r"train-readout-observed-0, .*\): name one"):
        study.model("readout")
    with pytest.raises(ConfigError, match="this study trains no isa"):
        study.model("isa")
    with pytest.raises(ConfigError, match=r"frames-test .* is not in .*: run `physion stage frames --subset test`"):
        physion.open(str(tmp_path / "empty"), preset).videos("test")
