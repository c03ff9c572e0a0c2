"""A slot model and a readout from outside the package (the example of docs/extend.md, run), and plug-ins with a mistake."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from physion.commands import for_trainings
from physion.config.load import load_config, preset_text
from physion.data.clips import to_unit
from physion.data.shards import FrameShards
from physion.errors import ConfigError
from physion.kubernetes.tasks import study_tasks
from physion.models.kinds import MODELS
from physion.models.slots import SlotModel, SlotOutput, encode_video
from physion.models.weights import load_model
from physion.stages import STAGES
from physion.store.artifacts import Artifact, Manifest
from physion.store.local import LocalStore

DOCS = Path(__file__).parents[2] / "docs"
USED = ["--set", "plugins=[patch_slots]", "--set", "slot-model=patches", "--set", "train-readout.model=mean"]
QUICK = ["--set", "train-readout.seeds=[0]", "--set", "evaluate.videos=1"]
STUDY = ["-p", "smoke", *USED, *QUICK]
FIRST = ("simulate", "frames")
AFTER = {"extract-slots", "train-slotformer", "rollout", "train-readout", "regress", "evaluate"}


def code_of(document):
    """Its Python, block after block."""
    return "\n\n".join(re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL))


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a plug-in where Python finds it. What it registers is forgotten after the test."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    known = [(table, dict(table)) for table in (MODELS, STAGES)]

    def write(code, name="mine"):
        (folder / f"{name}.py").write_text(code)

    yield write
    for table, before in known:
        table.clear()
        table.update(before)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def example(plugin):
    """The document's example, to be used in this process."""
    plugin(code_of((DOCS / "extend.md").read_text()), "patch_slots")


def run(folder, store):
    """`physion run` in a process that finds plug-ins in a folder."""
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    line = [sys.executable, "-m", "physion.cli", "run", *STUDY, "-s", str(store)]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, timeout=600)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The document's example in a folder of its own, and the store of a study with it."""
    folder, store = tmp_path_factory.mktemp("outside"), tmp_path_factory.mktemp("store")
    (folder / "patch_slots.py").write_text(code_of((DOCS / "extend.md").read_text()))
    ended = run(folder, store)
    assert ended.returncode == 0, ended.stderr
    return folder, store, ended


def artifact(store, stage):
    (path,) = store.glob(f"artifacts/{stage}/*/manifest.json")
    return Artifact(LocalStore(store), Manifest.model_validate_json(path.read_text()))


def test_the_document_shows_the_example_whole():
    assert code_of((DOCS / "extend.md").read_text()) == (DOCS / "examples/patch_slots.py").read_text()


def test_the_study_runs_on_models_from_outside(ran):
    _, store, _ = ran
    assert {path.name for path in (store / "artifacts").iterdir()} == {*FIRST, "train-patches", *AFTER}
    for stage in ("train-patches", "train-slotformer"):
        metrics = artifact(store, stage).manifest.metrics
        assert metrics["heldout_loss"] < metrics["heldout_loss_before"], stage
    (report,) = store.glob("artifacts/evaluate/*/report.html")
    text = report.read_text()
    for caption in ("slot masks", "true slots, decoded", "rollout, decoded (orange: predicted)", "where each slot looks"):
        assert caption in text
    assert not re.search("STEVE|dVAE|reconstruction", text)
    for path in store.glob("artifacts/train-readout/*/weights.safetensors"):
        assert b'"model": "mean"' in path.read_bytes()[:2000].replace(b"\\", b"")


def test_masks_and_decoded_slots(ran, example):
    _, store, _ = ran
    load_config("smoke", ["plugins=[patch_slots]"])
    model = load_model(artifact(store, "train-patches").path("weights.safetensors"), "patches")
    frames = next(
        FrameShards(Artifact(LocalStore(store), manifest))
        for path in store.glob("artifacts/frames/*/manifest.json")
        if (manifest := Manifest.model_validate_json(path.read_text())).params["subset"] == "test"
    )
    images = to_unit(torch.from_numpy(frames.images(frames.videos[0].name, 0, 20)).permute(0, 3, 1, 2))
    with torch.inference_mode():
        (whole,) = encode_video(model, [images[None]], with_masks=True)
        chunks = encode_video(model, images[None].split(7, 1), with_masks=True)
        torch.testing.assert_close(torch.cat([out.slots for out in chunks], 1), whole.slots)
        torch.testing.assert_close(whole.masks.sum(2), torch.ones(1, 20, 8, 8))
        error = (model.decode(whole.slots[0]) - images).square().mean()
    assert error < 0.7 * (images - images.mean((2, 3), keepdim=True)).square().mean()


def test_the_commands_know_the_new_stage(ran, physion, example):
    _, store, _ = ran
    rows = json.loads(physion("plan", *STUDY, "-s", store, "--json").out)["result"]
    assert all(row["cached"] for row in rows)
    flops = {row["stage"]: row["flops"] for row in rows}
    assert all(flops[stage] > 0 for stage in ("train-patches", "extract-slots", "train-slotformer", "train-readout"))
    shown = physion("config", "show", *STUDY, "--set", "train-patches.optim.lr=1e-4", "--json")
    section = json.loads(shown.out)["result"]["train-patches"]
    assert (section["iterations"], section["optim"]["lr"], section["optim"]["steps"]) == (3, 1e-4, 60)
    ended = physion("stage", "train-patches", *STUDY, "-s", store)
    assert ended.out.startswith("train-patches: cached"), ended.err
    for key, said in {"slot": "did you mean 'slots'?", "optim.lrr": "did you mean 'lr'?"}.items():
        ended = physion("plan", *STUDY, "-s", store, "--set", f"train-patches.{key}=3")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert f"unknown key 'train-patches.{key}', {said}" in ended.err


def test_a_preset_need_not_hold_trainings_that_it_does_not_use(ran, physion, example, tmp_path):
    _, store, _ = ran
    tree = yaml.safe_load(preset_text("smoke"))
    del tree["train-dvae"], tree["train-steve"]
    tree |= {"plugins": ["patch_slots"], "slot-model": "patches", "train-readout": tree["train-readout"] | {"model": "mean"}}
    preset = tmp_path / "patches.yaml"
    preset.write_text(yaml.safe_dump(tree))
    rows = json.loads(physion("plan", "-p", preset, *QUICK, "-s", store, "--json").out)["result"]
    assert all(row["cached"] for row in rows if row["stage"] in FIRST)
    assert {row["stage"] for row in rows} == {*FIRST, "train-patches", *AFTER}
    assert (
        load_config(str(preset), for_trainings(str(preset), [], precision="bf16")).section("train-patches").precision == "bf16"
    )
    assert "train-patches" in study_tasks(load_config(str(preset)))
    ended = physion("plan", "-p", preset, "--set", "slot-model=steve", "-s", store)
    lines = [f"'{name}' is missing; of its options these have no default: optim" for name in ("train-dvae", "train-steve")]
    assert (ended.code, ended.err) == (2, f"error: preset {preset}: " + "\n".join(lines) + "\n")
    ended = physion("weights", "import", tmp_path / "x.pth", "--as", "steve", "-p", preset, "-s", store)
    assert ended.code == 2
    assert "preset patches has no train-steve, which says how large a steve is: name another --preset" in ended.err
    shown = json.loads(physion("config", "schema", "-p", preset).out)
    assert {"train-patches", "train-dvae"} <= shown["properties"].keys()


def test_a_second_run_has_nothing_to_do(ran):
    folder, store, first = ran
    again = run(folder, store)
    assert again.stdout == first.stdout
    assert again.stderr.count(": cached") == first.stderr.count(": done in") > 10
    assert ": done in" not in again.stderr


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("train-patches.slots=5", {"train-patches", *AFTER}),
        ("train-patches.checkpoint-every=7", set()),  # does not change results
        ("train-readout.model=readout", {"train-readout", "evaluate"}),
    ],
)
def test_an_option_changes_what_follows_from_it(ran, physion, example, override, changed):
    _, store, _ = ran
    rows = json.loads(physion("plan", *STUDY, "-s", store, "--set", override, "--json").out)["result"]
    assert {row["stage"] for row in rows if not row["cached"]} == changed


def test_a_readouts_code_has_a_version(ran, physion, example):
    _, store, _ = ran
    load_config("smoke", ["plugins=[patch_slots]"])
    MODELS["mean"] = type(MODELS["mean"])("mean", make=MODELS["mean"].make, version=2)
    rows = json.loads(physion("plan", *STUDY, "-s", store, "--json").out)["result"]
    assert {row["stage"] for row in rows if not row["cached"]} == {"train-readout", "evaluate"}


def test_a_precision_is_for_its_training_too(example):
    overrides = for_trainings("smoke", ["plugins=[patch_slots]"], precision="bf16")
    assert load_config("smoke", overrides).section("train-patches").precision == "bf16"


def test_a_cluster_can_train_it(physion, example, tmp_path):
    ended = physion("launch", "train-patches", *STUDY, "-s", tmp_path / "store", "--jobs", DOCS.parent / "jobs")
    assert ended.code == 2
    assert "error: input frames-training" in ended.err  # the last thing looked at before the cluster


def test_its_weights_are_shared_and_used(ran, physion, example, tmp_path):
    _, store, _ = ran
    other = tmp_path / "other"
    for stage in ("train-patches", "train-slotformer"):
        ended = physion("weights", "push", stage, "--name", f"my-{stage}", *STUDY, "-s", store, "--to", other)
        assert ended.code == 0, ended.err
    given = ["--set", "train-patches.weights=my-train-patches", "--set", "train-slotformer.weights=my-train-slotformer"]
    rows = {row["name"]: row for row in json.loads(physion("plan", *STUDY, *given, "-s", other, "--json").out)["result"]}
    assert rows["take-weights-patches"]["weights"] == "pretrained/my-train-patches"
    assert rows["take-weights-slotformer"]["inputs"] == {}
    assert not {"train-patches", "train-slotformer", "train-dvae", "train-steve"} & rows.keys()
    ended = physion("plan", *STUDY, *given, "-s", other, "--set", "train-patches.slots=5")
    assert (ended.code, "does not fit the configured patches model: slots is 4, configured 5" in ended.err) == (2, True)
    ended = physion("weights", "export", "pretrained/my-train-patches", tmp_path / "x.pth", *STUDY, "-s", other)
    assert (ended.code, "patches has no published form" in ended.err) == (2, True)
    ended = physion("weights", "import", tmp_path / "x.pth", "--as", "patches", *STUDY, "-s", other)
    assert (ended.code, "patches has no published form" in ended.err) == (2, True)


def test_weights_made_with_a_model_that_the_study_has_not(physion, preset, store, example, tmp_path):
    pushed = physion("weights", "push", "train-slotformer", "--name", "theirs", "-p", preset, "-s", store)
    assert pushed.code == 0, pushed.err
    same_shape = ["--set", "train-patches.slots=2", "--set", "train-patches.clip-frames=1"]
    given = ["--set", "train-slotformer.weights=theirs"]
    ended = physion("plan", "-p", preset, "-s", store, *USED, *same_shape, *given)
    assert ended.code == 2
    assert "pretrained/theirs was trained with dvae, which is not part of this study with slot model patches" in ended.err


PARTS = """
from physion.config.schema import TrainingStage
from physion.models.kinds import MODELS, ModelKind, ReadoutKind, SlotModelKind
from physion.models.readout import Readout, ReadoutModel
from physion.models.slots import SlotModel
from physion.stages.registry import STAGES, Instance, Kind, Stage
def run(job): return {}
facts = {"kind": Kind.TRAINING, "summary": "", "reads": lambda config, params: {}}
slots = {"sizes": lambda config: {}, "shape": lambda config: (2, 8)}
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "plugin 'mine' cannot be imported (No module named 'mine'); is its folder on PYTHONPATH?"),
        ("import no_such_thing", "plugin 'mine' cannot be imported (No module named 'no_such_thing')\n"),
        ("x = 1\ny = z", "(NameError: name 'z' is not defined; FOLDER/mine.py, line 2)\n"),
        ("def f(:", "(SyntaxError: invalid syntax (mine.py, line 1))\n"),
        (
            PARTS + "class Other(Readout): ...\nMODELS.register(ReadoutKind('readout', make=Other))",
            "plugin 'mine': two kinds of models are called 'readout': physion.models.readout:Readout and mine:Other\n",
        ),
        (
            PARTS + "STAGES.register(Stage('train-steve', module=__name__, **facts))",
            "plugin 'mine': two stages are called 'train-steve': physion.stages.train_steve and mine\n",
        ),
        (
            PARTS
            + "class Blind(SlotModel): ...\nMODELS.register(SlotModelKind('blind', make=Blind, stage='train-dvae', **slots))",
            "plugin 'mine': slot model 'blind': mine:Blind does not define encode of physion.models.slots:SlotModel\n",
        ),
        (
            PARTS + "MODELS.register(SlotModelKind('wrong', make=Readout, stage='train-dvae', **slots))",
            "slot model 'wrong': physion.models.readout:Readout is not a subclass of physion.models.slots:SlotModel\n",
        ),
        (
            PARTS + "class Mute(ReadoutModel): ...\nMODELS.register(ReadoutKind('mute', make=Mute))",
            "plugin 'mine': readout 'mute': mine:Mute does not define forward of physion.models.readout:ReadoutModel\n",
        ),
        (
            PARTS + "MODELS.register(ReadoutKind('mute'))",
            "(TypeError: ReadoutKind.__init__() missing 1 required keyword-only argument: 'make'; FOLDER/mine.py, line 10)\n",
        ),
        (
            PARTS + "MODELS.register(ReadoutKind('mine', make=lambda slots, slot_size: None, stage='train-mime'))\n"
            "STAGES.register(Stage('train-mine', module=__name__, **facts))",
            "plugin 'mine': readout 'mine': there is no stage 'train-mime' to train it, did you mean 'train-mine'?\n",
        ),
        (
            PARTS + "del run\nSTAGES.register(Stage('train-mine', module=__name__, **facts))",
            "plugin 'mine': stage train-mine: module mine has no run(job)\n",
        ),
        (
            PARTS + "facts |= {'kind': Kind.PROCESS, 'section': TrainingStage}\n"
            "STAGES.register(Stage('train-mine', module=__name__, **facts))",
            "preset smoke: 'train-mine' is missing; of its options these have no default: optim\n",
        ),
    ],
)
def test_a_mistake_in_a_plugin_is_one_clear_line(physion, plugin, tmp_path, code, said):
    if code is not None:
        plugin(code)
    ended = physion("config", "show", "-p", "smoke", "--set", "plugins=[mine]")
    assert ended.code == 2
    assert ended.err.startswith("error: preset smoke: ")
    assert said.replace("FOLDER", str(tmp_path / "plugins")) in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("slot-model=stev", "there is no slot model 'stev', did you mean 'steve'?; there are: steve"),
        ("slot-model=dvae", "there is no slot model 'dvae': it is registered as a model; there are: steve"),
        ("train-readout.model=steve", "there is no readout 'steve': it is registered as a slot model; there are: readout"),
        ("plugins=mine", "'plugins': input should be a valid tuple, not 'mine'"),
    ],
)
def test_names_of_models_that_are_none(physion, override, said):
    ended = physion("config", "show", "-p", "smoke", "--set", override)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert said in ended.err


class Crooked(SlotModel):
    def __init__(self, slots, masks):
        super().__init__()
        self.given = SlotOutput(slots, masks, None)

    def encode(self, images_BT3HW, state=None, with_masks=False):
        return self.given


@pytest.mark.parametrize(
    ("slots", "masks", "said"),
    [
        ((2, 3, 4), None, r"gave slots \[2, 3, 4\], not \[B=2, T=5, S, D\]"),
        ((2, 1, 3, 4), None, r"gave slots \[2, 1, 3, 4\], not \[B=2, T=5, S, D\]"),
        ((2, 5, 3, 4), None, r"gave masks None, not \[B=2, T=5, S=3, h, w\]"),
        ((2, 5, 3, 4), (2, 5, 8, 8), r"gave masks \[2, 5, 8, 8\], not"),
        ((2, 5, 3, 4), (2, 5, 3, 8, 8), "gave masks that do not sum to 1 over the slots"),
    ],
)
def test_a_slot_model_that_does_not_hold_its_shapes(slots, masks, said):
    model = Crooked(torch.ones(slots), None if masks is None else torch.ones(masks))
    with pytest.raises(ConfigError, match=f"Crooked.encode {said}"):
        list(encode_video(model, [torch.zeros(2, 5, 3, 16, 16)], with_masks=True))


def test_a_readout_that_does_not_hold_its_shapes(physion, preset, store, plugin):
    plugin(PARTS + "class Wide(Readout):\n    def forward(self, slots): return super().forward(slots)[:, None]\n"
           "MODELS.register(ReadoutKind('wide', make=Wide))")  # fmt: skip
    chosen = ["--features", "observed", "--seed", "0", "--set", "plugins=[mine]", "--set", "train-readout.model=wide"]
    ended = physion("stage", "train-readout", *chosen, "-p", preset, "-s", store)
    assert ended.code == 2
    assert "error: readout 'wide' gave logits [2, 1], not [B=2]\n" in ended.err
