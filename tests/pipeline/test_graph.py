from dataclasses import replace

import pytest

from physion.config.load import load_config
from physion.pipeline.graph import build_graph, fingerprint_of
from physion.stages import STAGES


def prints(*overrides, preset="tiny"):
    return {name: node.fingerprint for name, node in build_graph(load_config(preset, overrides)).items()}


def changed(*overrides):
    before, after = prints(), prints(*overrides)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def downstream(*roots):
    graph = build_graph(load_config("tiny"))
    found = set(roots)
    for node in graph.values():
        if found & set(node.inputs.values()):
            found.add(node.name)
    return found


@pytest.mark.parametrize(
    "knob",
    [
        "simulate.workers=1",
        "simulate.videos-per-part=3",
        "frames.workers=1",
        "train-dvae.checkpoint-every=7",
        "train-steve.loader-workers=1",
        "tokenize.batch-size=3",
        "extract-slots.batch-size=3",
        "extract-slots.chunk-frames=7",
        "rollout.batch-size=3",
        "fetch.root=/elsewhere",  # not part of a study on simulated videos
        "preset=other",
    ],
)
def test_what_does_not_change_results_changes_no_fingerprint(knob):
    assert changed(knob) == set()


@pytest.mark.parametrize(
    ("override", "root"),
    [
        ("train-dvae.optim.lr=1e-4", "train-dvae"),
        ("train-steve.model.slots=7", "train-steve"),
        ("train-steve.seed=5", "train-steve"),
        ("train-slotformer.optim.steps=10", "train-slotformer"),
        ("tokenize.videos-per-shard=9", "tokenize"),
        ("evaluate.resamples=9", "evaluate"),
    ],
)
def test_what_changes_results_changes_its_stage_and_all_that_follows_and_nothing_else(override, root):
    assert changed(override) == downstream(root)


def test_a_section_of_several_instances_changes_them_all():
    assert changed("simulate.seed=1") == downstream("simulate-training", "simulate-readout", "simulate-test")
    assert changed("frames.jpeg-quality=80") == downstream("frames-training", "frames-readout", "frames-test")


def test_one_dial_for_the_observed_frames():
    observed = {name for name in prints() if name.startswith("train-readout-observed")}
    observed |= {"regress-observed-frames", *(f"regress-{on}-observed" for on in ("tokens", "states", "picture", "slots"))}
    assert changed("rollout.observed=60") == downstream("rollout-readout", "rollout-test", *observed)


@pytest.mark.parametrize(("mode", "frames"), [("rollout", 60), ("full", 149)])
def test_readouts_depend_on_the_frames_of_their_own_mode_only(mode, frames):
    readouts = {name for name in prints() if name.startswith(f"train-readout-{mode}")}
    readouts |= {f"regress-{on}-{mode}" for on in ("states", "picture", "slots")}
    assert changed(f"train-readout.frames.{mode}={frames}") == downstream(*readouts)


@pytest.mark.parametrize("subset", ["training", "readout", "test"])
def test_more_videos_of_a_subset_leave_the_others_alone(subset):
    assert changed(f"simulate.videos.{subset}=8") == downstream(f"simulate-{subset}")
    if subset != "training":
        assert "train-steve" not in downstream(f"simulate-{subset}")


def test_a_fingerprint_is_the_hash_of_the_identity():
    for node in build_graph(load_config("tiny")).values():
        assert node.fingerprint == fingerprint_of(node.identity)
        assert node.identity["inputs"].keys() == node.inputs.keys()


def test_fingerprints_are_the_same_again_and_differ_from_each_other():
    assert prints() == prints()
    assert len(set(prints().values())) == len(prints())


def test_readouts_are_told_apart_by_features_and_seed():
    graph = build_graph(load_config("smoke"))
    readouts = [node for node in graph.values() if node.stage.name == "train-readout"]
    assert {(n.params["features"], n.params["seed"]) for n in readouts} == {
        (mode, seed) for mode in ("observed", "rollout", "full") for seed in (0, 1)
    }
    assert len({node.fingerprint for node in readouts}) == 6
    # The same two readouts keep their fingerprints when a third seed joins.
    more = build_graph(load_config("smoke", ["train-readout.seeds=[0, 1, 2]"]))
    assert all(more[node.name].fingerprint == node.fingerprint for node in readouts)
    assert more["evaluate"].fingerprint != graph["evaluate"].fingerprint


@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_inputs_come_before_what_reads_them(preset):
    seen = set()
    for node in build_graph(load_config(preset)).values():
        assert set(node.inputs.values()) <= seen
        assert node.stage is STAGES[node.stage.name]
        seen.add(node.name)


def test_a_newer_version_of_a_stage_is_another_artifact(monkeypatch):
    before = prints()
    monkeypatch.setitem(STAGES, "tokenize", replace(STAGES["tokenize"], version=STAGES["tokenize"].version + 1))
    after = prints()
    assert {name for name in before if before[name] != after[name]} == downstream("tokenize")


def test_observed_and_full_readouts_do_not_wait_for_the_rollouter():
    graph = build_graph(load_config("tiny"))
    assert graph["train-readout-observed-0"].inputs == {"slots": "extract-slots-readout"}
    assert graph["train-readout-full-0"].inputs == {"slots": "extract-slots-readout"}
    assert graph["train-readout-rollout-0"].inputs == {"slots": "rollout-readout"}


def test_regressions_on_states_are_part_of_a_study_whose_dataset_tells_the_truth():
    def on(*overrides):
        return {name.removeprefix("regress-") for name in prints(*overrides) if name.startswith("regress-")}

    states = {f"{kind}-{mode}" for kind in ("states", "picture") for mode in ("observed", "rollout", "full")}
    places = {"places-observed", "places-rollout", "places-full"}
    assert states < on()
    assert on("slot-model=isa") == (on() | places) - {"tokens-observed"}
    slots_of_isa = build_graph(load_config("tiny", ["slot-model=isa"]))
    assert slots_of_isa["regress-places-rollout"].inputs == {"readout": "rollout-readout", "test": "rollout-test"}
    assert slots_of_isa["regress-places-full"].settings == {"frames": 150, "places": 2}
    assert on("dataset=fetch") == on("simulate.truth=[training, test]") == on() - states
    assert on("regress.on=[scenario, states-full]") == {"scenario", "states-full"}
    graph = build_graph(load_config("tiny"))
    assert graph["regress-states-full"].inputs == {"readout": "simulate-readout", "test": "simulate-test"}
    assert graph["regress-slots-rollout"].inputs == {"readout": "rollout-readout", "test": "rollout-test"}
    assert graph["regress-slots-full"].inputs == {"readout": "extract-slots-readout", "test": "extract-slots-test"}
    frames = {"readout": "frames-readout", "test": "frames-test"}
    assert graph["regress-first-frame"].inputs == frames
    assert graph["regress-tokens-observed"].inputs == frames | {"dvae": "train-dvae"}
