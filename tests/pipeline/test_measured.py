"""What `physion plan` says of time comes from what artifacts took."""

import json

import pytest

from physion.config.load import load_config
from physion.machine import Machine, device_name
from physion.pipeline.graph import build_graph
from physion.pipeline.measured import wall_clock
from physion.store.artifacts import Manifest


@pytest.fixture
def planned(physion, preset, finished):
    """The rows of a plan on the finished study, by instance."""

    def plan(*options):
        return {
            row["name"]: row
            for row in json.loads(physion("plan", "-p", preset, "-s", finished, "--json", *options).out)["result"]
        }

    return plan


def manifests(root):
    found = (Manifest.model_validate_json(path.read_bytes()) for path in root.glob("artifacts/*/*/manifest.json"))
    return {manifest.instance: manifest for manifest in found}


def test_twice_the_work_takes_twice_the_time(planned, preset, finished):
    made = manifests(finished)
    steps = load_config(preset).train_steve.optim.steps
    rows = planned("--set", f"train-steve.optim.steps={2 * steps}")
    assert rows["train-steve"]["seconds"] == pytest.approx(2 * made["train-steve"].seconds)
    # The median over subsets; one has half as many videos.
    subsets = [made[f"extract-slots-{subset}"] for subset in ("training", "readout", "test")]
    rate = sorted(manifest.seconds / manifest.work for manifest in subsets)[1]
    assert rows["extract-slots-test"]["seconds"] == pytest.approx(rate * made["extract-slots-test"].work)
    for name, row in rows.items():
        assert row["took"] == {"seconds": made[name].seconds, "device": device_name()}
        assert row["seconds"] is not None, name


def test_slots_that_a_dataset_tells_say_nothing_of_those_that_a_model_finds(planned, physion, preset, finished, store):
    """They count bytes, not FLOPs, and are newer here."""
    before = planned()["extract-slots-test"]["seconds"]
    for path in sorted(store.glob("artifacts/extract-slots/*/manifest.json")):
        told = json.loads(path.read_bytes()) | {"created": "2099-01-01T00:00:00Z", "seconds": 9.0, "work": 100.0}
        del told["inputs"]["slot-model"]
        copy = path.parent.with_name(path.parent.name[::-1])
        copy.mkdir()
        (copy / "manifest.json").write_text(json.dumps(told | {"fingerprint": copy.name}))
    rows = json.loads(physion("plan", "-p", preset, "-s", store, "--json").out)["result"]
    assert {row["name"]: row["seconds"] for row in rows}["extract-slots-test"] == before


def test_times_of_another_machine_are_not_known(planned):
    rows = planned("--on", "Imaginary H900")
    assert {row["seconds"] for row in rows.values()} == {None}
    assert rows["train-dvae"]["took"]["device"] == device_name()


def test_nothing_is_known_from_an_empty_store(physion, preset, tmp_path):
    out = physion("plan", "-p", preset, "-s", tmp_path).out
    assert "A GPU would take about" in out
    assert "wall-clock" not in out


def test_people_are_told_what_is_left_and_on_what(physion, preset, finished):
    out = physion("plan", "-p", preset, "-s", finished, "--set", "train-dvae.seed=9").out
    assert f"at the rates of {device_name()}" in " ".join(out.split())
    assert "Still to do here: at least" in out
    assert "not counted" not in out


def test_wall_clock_is_the_longest_chain_or_all_the_work(preset):
    stages = ("train-dvae", "train-steve", "train-slotformer", "train-readout")
    one_core = [f"{stage}.threads=1" for stage in stages]
    nodes = list(build_graph(load_config(preset, one_core)).values())
    ten = dict.fromkeys((node.name for node in nodes), 10.0)
    parents = {node.name: node.inputs.values() for node in nodes}

    def chain(name):
        return 1 + max(map(chain, parents[name]), default=0)

    alone = wall_clock(nodes, ten, Machine(1, 8e9))
    assert alone == pytest.approx(10 * len(nodes))  # one core does one thing after the other
    many = wall_clock(nodes, ten, Machine(1000, 8e9))
    assert 10 * 3 < many < 10 * max(map(chain, parents))  # what has parts takes no time on a thousand cores
    assert wall_clock(nodes, {}, Machine(2, 8e9)) == 0
    gpu = wall_clock(nodes, {name: 10.0 for name in stages[:3]}, Machine(16, 8e9, ("0",)))
    assert gpu == pytest.approx(30)


def test_what_left_no_readable_manifest_ends_no_plan_and_no_run(physion, preset, store):
    """Of another study in the same store, cut short by a full disk or written by a newer physion."""
    for fingerprint, damaged in (("0" * 20, b"{"), ("1" * 20, b'{"format": 999}')):
        path = store / "artifacts" / "train-steve" / fingerprint / "manifest.json"
        path.parent.mkdir()
        path.write_bytes(damaged)
    change = ("-p", preset, "-s", store, "--set", "evaluate.resamples=50")
    assert physion("plan", "--why", *change).code == 0
    ran = physion("run", *change)
    assert ran.code == 0, ran.err
