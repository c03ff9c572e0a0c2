"""What a person can get wrong: an exit code, one clear line a problem, and nothing half-written in the store."""

import codecs
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from physion.config.schema import SUBSETS
from physion.data.video import write_mp4


@pytest.fixture
def stage(physion, preset, tmp_path):
    """A stage of the mini study on a dataset of the test's own."""

    def command(*arguments, dataset=None, store=tmp_path / "store"):
        root = ["--set", f"fetch.root={dataset.root}"] if dataset else []
        return physion("stage", *arguments, "-p", preset, "-s", store, *root)

    return command


def clearly(ended, code, *said):
    """The command ended with this code and says all of this, one line each, and nothing of its insides."""
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    last = ended.err.splitlines()[-1]
    error = f"error: {json.loads(last)['error']}" if last.startswith('{"version"') else ended.err[ended.err.index("error: ") :]
    lines = error.splitlines()
    for text in said:
        assert sum(text in line for line in lines) == 1, (text, lines)
    return lines


def nothing_published(store, stage):
    """No manifest and no scratch files; returns what else there is, without what parts are made from."""
    names = (path.name for path in (store / "artifacts" / stage).rglob("*") if path.is_file())
    left = sorted(re.sub(r"^(\d{5})-[0-9a-f]{8}\.", r"\1.", name) for name in names)
    assert "manifest.json" not in left
    assert not list((store / ".staging").rglob("*"))
    return left


def test_bad_videos_are_listed_together(stage, dataset, tmp_path):
    videos = dataset.videos("test")  # six: two shards of three
    good = videos[0].read_bytes()
    videos[0].write_bytes(good[: len(good) // 2])
    videos[1].write_bytes(b"")
    write_mp4(videos[2], np.zeros((11, 32, 32, 3), np.uint8))
    assert stage("fetch", dataset=dataset).code == 0
    ended = stage("frames", "--subset", "test", dataset=dataset)
    lines = clearly(
        ended,
        3,
        "error: 3 problems in the dataset:",
        f"{videos[0].name}: cannot be decoded",
        f"{videos[1].name}: cannot be decoded",
        f"{videos[2].name}: has 11 frames, 12 are needed",
        "fix the source, run `physion stage fetch --subset test --force`, then this command again",
    )
    assert len(lines) == 5
    # The shard without a problem is kept with its record, for the next attempt; there is no index and no artifact.
    assert nothing_published(tmp_path / "store", "frames") == ["00001.json", "00001.safetensors", "study.json"]
    for video in videos[:3]:
        video.write_bytes(good)
    assert stage("fetch", "--subset", "test", "--force", dataset=dataset).code == 0
    ended = stage("frames", "--subset", "test", dataset=dataset)
    assert ended.code == 0, ended.err


def shards(store):
    """The shards of frames and when they were written, to tell which are made again."""
    return {path.name: path.stat().st_mtime_ns for path in store.glob("artifacts/frames/*/*.safetensors")}


def same_as_from_the_start(stage, store, dataset, subset):
    """The frames in the store are those that a new store gets from the dataset as it is now; each video is there once."""
    fresh = store.with_name("fresh")
    made = []
    for root in (store, fresh):
        for name in ("fetch", "frames"):
            assert stage(name, "--subset", subset, dataset=dataset, store=root).code == 0
        (folder,) = [path.parent for path in root.glob("artifacts/frames/*/manifest.json")]
        names = [entry["name"] for entry in json.loads((folder / "index.json").read_bytes())["videos"]]
        assert names == [path.stem for path in sorted(dataset.videos(subset))]
        manifest = json.loads((folder / "manifest.json").read_bytes())
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert there == {"manifest.json", *(record["name"] for record in manifest["files"])}
        made.append(manifest["files"])
    assert made[0] == made[1]


def test_after_mending_a_video_in_place_finished_parts_are_reused(stage, dataset, tmp_path):
    videos = dataset.videos("training")  # eight: shards of three, three and two
    good = videos[4].read_bytes()
    videos[4].write_bytes(good[: len(good) // 2])
    assert stage("fetch", "--subset", "training", dataset=dataset).code == 0
    clearly(stage("frames", "--subset", "training", dataset=dataset), 3, f"{videos[4].name}: cannot be decoded")
    first, last = sorted(finished := shards(tmp_path / "store"))
    assert (first[:5], last[:5]) == ("00000", "00002")
    videos[4].write_bytes(good)
    assert stage("fetch", "--subset", "training", "--force", dataset=dataset).code == 0
    same_as_from_the_start(stage, tmp_path / "store", dataset, "training")
    now = shards(tmp_path / "store")
    assert len(now) == 3
    assert now.items() > finished.items()


@pytest.mark.parametrize(("mend", "reused"), [("replaced", 2), ("removed", 1), ("added", 1), ("others changed", 1)])
def test_a_source_that_is_mended_in_another_way_gives_no_video_twice_and_no_old_one(stage, dataset, tmp_path, mend, reused):
    """A broken video leaves finished parts behind, then videos change under them."""
    videos = dataset.videos("training")
    good = videos[4].read_bytes()
    videos[4].write_bytes(b"")
    assert stage("fetch", "--subset", "training", dataset=dataset).code == 0
    assert stage("frames", "--subset", "training", dataset=dataset).code == 3
    finished = shards(tmp_path / "store")
    assert len(finished) == 2
    videos[4].unlink()
    if mend in ("replaced", "added"):
        videos[4].with_name("pilot_another_0000_img.mp4").write_bytes(good)
    if mend in ("added", "others changed"):
        videos[4].write_bytes(good)
    if mend == "others changed":
        videos[0].write_bytes(good)
    assert stage("fetch", "--subset", "training", "--force", dataset=dataset).code == 0
    same_as_from_the_start(stage, tmp_path / "store", dataset, "training")
    assert len(shards(tmp_path / "store").items() & finished.items()) == reused


def no_column(dataset):
    path = dataset.labels("readout")
    path.write_text(path.read_text().replace("ground truth outcome", "outcome"))


def label_for_nobody(dataset):
    with dataset.labels("readout").open("a") as file:
        file.write("pilot_nobody_0001,True\n")


def no_label(dataset):
    path = dataset.labels("test")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def two_labels(dataset):
    path = dataset.labels("test")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[1]]))


def no_truth(dataset):
    path = dataset.labels("readout")
    path.write_text(path.read_text().replace("True", "yes", 1))


def two_videos(dataset):
    first, *_, last = dataset.videos("readout")
    shutil.copy(first, last.parent / first.name)


def no_label_file(dataset):
    dataset.labels("test").unlink()


def no_training(dataset):
    for video in dataset.videos("training"):
        video.unlink()


DAMAGE = {
    no_column: ("readout", "readout_labels.csv: no column 'ground truth outcome' (columns: outcome)"),
    label_for_nobody: ("readout", "label 'pilot_nobody_0001' belongs to no video"),
    no_label: ("test", "pilot_drop-redyellow_0002_img.mp4: no label in "),
    two_labels: ("test", "labels.csv line 8: a second label for 'pilot_collide_0000_img'"),
    no_truth: ("readout", "the outcome of 'pilot_collide_0000' is 'yes', not True or False"),
    two_videos: ("readout", "pilot_collide_0000_img.mp4: 2 videos have this name"),
    no_label_file: ("test", "PhysionTestMP4s/labels.csv: the label file is missing"),
    no_training: ("training", "the dataset holds no training videos (.../<Scenario>_training_MP4s/*.mp4)"),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_dataset_with_a_problem_is_not_fetched(stage, dataset, tmp_path, damage):
    damage(dataset)
    subset, said = DAMAGE[damage]
    clearly(stage("fetch", "--subset", subset, dataset=dataset), 3, said)
    nothing_published(tmp_path / "store", "fetch")
    clearly(stage("fetch", dataset=dataset), 3, said)  # of all subsets: the others are fetched all the same
    manifests = (json.loads(path.read_bytes()) for path in tmp_path.glob("store/artifacts/fetch/*/manifest.json"))
    assert {manifest["instance"] for manifest in manifests} == {f"fetch-{other}" for other in SUBSETS} - {f"fetch-{subset}"}


def test_problems_of_all_subsets_are_listed_together(stage, dataset, tmp_path):
    for damage in (label_for_nobody, no_label, two_labels, two_videos, no_training):
        damage(dataset)
    said = [DAMAGE[damage][1] for damage in (label_for_nobody, two_videos, no_training)]
    clearly(stage("fetch", dataset=dataset), 3, *said, "0002_img.mp4: no label in ", "a second label for")
    nothing_published(tmp_path / "store", "fetch")


def test_a_repaired_dataset_is_fetched_at_once(stage, dataset, pristine):
    label_for_nobody(dataset)
    assert stage("fetch", dataset=dataset).code == 3
    shutil.copy(pristine.labels("readout"), dataset.labels("readout"))
    ended = stage("fetch", dataset=dataset)
    assert ended.code == 0, ended.err


def keys_of(store, kind, name):
    return [key for key in store.list(f"artifacts/{kind}") if fnmatch(key.rpartition("/")[2], name)]


def flip(store, key):
    data = bytearray(store.read(key))
    data[len(data) // 2] ^= 1
    store.write(key, bytes(data))


def forget(store, kind):
    """Remove the artifacts of a stage, so that it has to run again."""
    for key in store.list(f"artifacts/{kind}"):
        store.delete(key)


@pytest.mark.parametrize(
    ("kind", "name", "reader"),
    [
        ("frames", "00000-*.safetensors", "train-dvae"),
        ("frames", "index.json", "train-dvae"),
        ("train-dvae", "weights.safetensors", "tokenize"),
        ("extract-slots", "00001-*.safetensors", "train-slotformer"),
    ],
)
def test_a_corrupt_file_is_named_by_the_stage_that_reads_it(stage, study_store, kind, name, reader):
    keys = keys_of(study_store, kind, name)
    for key in keys:
        flip(study_store, key)
    forget(study_store, reader)
    ended = stage(reader, store=study_store.uri)
    (line,) = clearly(ended, 3, f" is corrupt (its SHA-256 is not the manifest's); run `physion stage {kind} --force`")
    assert any(f"/{key} is corrupt" in line for key in keys)
    assert keys_of(study_store, reader, "manifest.json") == []


def test_a_corrupt_video_in_the_dataset_artifact(stage, study_store):
    bad = [key for key in study_store.list("artifacts/fetch") if "/PhysionTestMP4s/" in key and key.endswith(".mp4")][1]
    flip(study_store, bad)
    forget(study_store, "frames")
    ended = stage("frames", "--subset", "test", store=study_store.uri)
    clearly(ended, 3, f"{bad.rpartition('/')[2]} is corrupt")
    assert keys_of(study_store, "frames", "manifest.json") == []


def test_force_makes_a_corrupt_artifact_again(stage, study_store):
    (weights,) = keys_of(study_store, "train-dvae", "weights.safetensors")
    before = study_store.read(weights)
    flip(study_store, weights)
    ended = stage("train-dvae", "--force", store=study_store.uri)
    assert ended.code == 0, ended.err
    assert study_store.read(weights) == before


def test_a_manifest_from_a_newer_version(stage, study_store):
    for key in keys_of(study_store, "frames", "manifest.json"):
        study_store.write(key, json.dumps({**json.loads(study_store.read(key)), "format": 3}).encode())
    forget(study_store, "train-dvae")
    for arguments in (["frames", "--subset", "test"], ["train-dvae"]):
        ended = stage(*arguments, store=study_store.uri)
        (line,) = clearly(ended, 2, "has format 3, this physion reads up to 2: update physion")
        assert "manifest.json" in line


def rewritten(store, instance, pattern, change):
    """Change the tensors of an artifact's files, as if they had been made so; its prefix."""
    changed = []
    for path in store.glob("artifacts/*/*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        for record in manifest["files"]:
            if manifest["instance"] == instance and fnmatch(record["name"], pattern):
                file = path.parent / record["name"]
                with safe_open(file, "np") as tensors:
                    facts = tensors.metadata()
                    arrays = {name: change(name, tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118
                save_file(arrays, file, facts)
                record |= {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
                changed.append(path.parent.relative_to(store).as_posix())
        path.write_text(json.dumps(manifest))
    return changed[0]


@pytest.mark.parametrize(
    ("kind", "arguments", "what", "frame"),
    [
        ("train-dvae", ["tokenize"], "tokenize: the logits of the tokens", 0),
        ("train-steve", ["extract-slots", "--subset", "test"], "extract-slots-test: the slots", 0),
        ("train-slotformer", ["rollout", "--subset", "test"], "rollout-test: the predicted slots", 4),
    ],
)
def test_weights_that_overflow_are_named_where_it_begins(stage, store, kind, arguments, what, frame):
    """Every weight is a finite number."""
    at = rewritten(store, kind, "weights.safetensors", lambda name, array: np.full_like(array, 3e38))
    for path in (store / "artifacts" / arguments[0]).iterdir():
        shutil.rmtree(path)
    video = "pilot_collide_0000_img" if "tokenize" in arguments else "pilot_collide-redyellow_0000_img"
    said = f"{what} of {video} are not finite from frame {frame} on, as {kind} in {store.as_uri()}/{at} has them"
    assert len(clearly(stage(*arguments), 3, said)) == 1
    assert nothing_published(store, arguments[0]) == ["study.json"]


def test_a_headline_is_printed_as_it_is_written(physion, preset, store):
    (path,) = store.glob("artifacts/evaluate/*/manifest.json")
    manifest = json.loads(path.read_bytes())
    manifest["metrics"]["headline"] = "[/x] full"
    path.write_text(json.dumps(manifest))
    ended = physion("run", "-p", preset, "-s", store)
    assert (ended.code, "\n[/x] full\n" in ended.out) == (0, True)


@pytest.mark.parametrize(
    ("instance", "place"),
    [
        ("train-readout-full-0", ["metrics", "threshold"]),
        ("train-readout-full-0", ["metrics", "frames"]),
        ("rollout-test", ["identity", "config", "observed"]),
    ],
    ids=lambda given: ".".join(given) if isinstance(given, list) else "",
)
@pytest.mark.parametrize("value", [None, "0.5", True])
def test_a_manifest_that_holds_no_number_where_one_is_read(stage, store, instance, place, value):
    (path,) = [p for p in store.glob("artifacts/*/*/manifest.json") if json.loads(p.read_bytes())["instance"] == instance]
    manifest = json.loads(path.read_bytes())
    at = manifest
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    path.write_text(json.dumps(manifest))
    said = f"{path.as_uri()} holds no number {'.'.join(place)}; run `physion stage {manifest['stage']} --force`"
    clearly(stage("evaluate", "--force"), 3, said)


def test_readouts_that_overflow_are_named_and_nothing_false_is_published(stage, physion, preset, store):
    """What is infinite, or not a number, would count as an answer: it is above a threshold, or not."""
    at = rewritten(store, "train-readout-full-1", "weights.safetensors", lambda name, array: np.full_like(array, 3e38))
    shutil.rmtree(store / "artifacts" / "evaluate")
    said = f"the answers of train-readout-full-1 ({store.as_uri()}/{at}/weights.safetensors) to 6 videos, such as pilot_"
    (line,) = clearly(stage("evaluate"), 3, said)
    assert "_img, are not finite: such weights diverged in training, or are too large" in line
    assert nothing_published(store, "evaluate") == ["study.json"]
    for seed in (0, 1):
        named = ["--features", "full", "--seed", seed, "--name", f"huge-{seed}", "-p", preset, "-s", store]
        assert physion("weights", "push", "train-readout", *named).code == 0
    given = ["--set", "train-readout.weights.full=pretrained/huge-{seed}"]
    ended = stage("take-weights", "--features", "full", "--seed", "1", *given)
    said = f"the answers of take-weights-readout-full-1, which is {store.as_uri()}/pretrained/huge-1, to 2 videos, such as "
    assert len(clearly(ended, 3, said)) == 1
    assert nothing_published(store, "take-weights") == ["study.json"]


@pytest.mark.parametrize(
    ("slots", "by", "arguments"),
    [
        ("extract-slots-test", "train-steve", ["rollout", "--subset", "test"]),
        ("extract-slots-training", "train-steve", ["train-slotformer"]),
        ("extract-slots-training", "train-steve", ["train-slotformer", "--set", "train-slotformer.loader-workers=1"]),
        ("rollout-readout", "train-slotformer", ["train-readout", "--features", "rollout", "--seed", "0"]),
    ],
)
def test_slots_that_are_not_finite_are_named_by_who_reads_them(stage, store, slots, by, arguments):
    """Before anything is computed from them, and with what made them. They are not among the held-out ones."""
    manifests = [json.loads(path.read_text()) for path in store.glob("artifacts/*/*/manifest.json")]
    made = {manifest["instance"]: f"{manifest['stage']}/{manifest['fingerprint']}" for manifest in manifests}
    videos = json.loads((store / "artifacts" / made[slots] / "index.json").read_text())["videos"]
    bad = next(video["name"] for video in videos if not video["heldout"])

    def change(name, array):
        if name == f"{bad}/slots":
            array[2, 0, 0] = np.nan
        return array

    at = rewritten(store, slots, "*.safetensors", change)
    shutil.rmtree(store / "artifacts" / arguments[0])
    said = (
        f"error: the slots of {bad} are not finite from frame 2 on, as {slots} in {store.as_uri()}/{at}, made by {by} "
        f"({made[by].partition('/')[2]}), has them or makes them: such weights diverged in training, or are too large."
    )
    assert len(clearly(stage(*arguments), 3, said)) == 1
    assert not list(store.glob(f"artifacts/{arguments[0]}/*/manifest.json"))


def test_a_stage_whose_input_is_not_there(stage, tmp_path):
    clearly(
        stage("train-dvae"),
        2,
        "is not in file://",
        "run `physion stage frames --subset training` with the same preset, overrides and store first, or `physion run`",
    )
    assert not (tmp_path / "store").exists()


def test_a_store_below_a_file(stage, tmp_path):
    (tmp_path / "file").write_text("")
    (line,) = clearly(stage("fetch", store=tmp_path / "file" / "store"), 2, ": Not a directory")
    assert line.endswith("choose another --store")


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs /sys")
def test_a_store_nobody_can_write(stage):
    clearly(stage("fetch", store="/sys/kernel/physion"), 2, "store file:///sys/kernel/physion: cannot write")


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, which can be made too small and then large enough."""
    root = tmp_path / "disk"
    root.mkdir()

    def size(kilobytes, *options):
        return subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kilobytes}k", *options]), "tmpfs", root], capture_output=True
        ).returncode

    if size(64):
        pytest.skip("mounting a small file system needs root")
    size.root = root
    yield size
    subprocess.run(["umount", "-l", root], check=True)


@pytest.mark.parametrize("kilobytes", [8, 32, 40])
def test_a_disk_that_is_full_then_is_not(stage, disk, kilobytes):
    disk(kilobytes, "remount")
    (line,) = clearly(stage("fetch", "--subset", "training", store=disk.root), 75, "no space left on the disk")
    assert "run the same command again" in line
    nothing_published(disk.root, "fetch")
    disk(20_000, "remount")
    ended = stage("fetch", store=disk.root)
    assert ended.code == 0, ended.err


def test_a_disk_that_fills_up_in_a_worker_or_in_training(stage, disk, store):
    disk(20_000, "remount")
    shutil.copytree(store, disk.root, dirs_exist_ok=True)
    for kind in ("train-dvae", "frames"):
        shutil.rmtree(disk.root / "artifacts" / kind)
    used = sum(path.stat().st_blocks * 512 for path in disk.root.rglob("*")) // 1024
    for kind, arguments in (("frames", ["frames", "--subset", "training"]), ("train-dvae", ["train-dvae"])):
        disk(used + 24, "remount")
        ended = stage(*arguments, store=disk.root)
        clearly(ended, 75, "no space left on the disk")
        nothing_published(disk.root, kind)
        disk(20_000, "remount")
        ended = stage(*arguments, store=disk.root)
        assert ended.code == 0, ended.err
        used = sum(path.stat().st_blocks * 512 for path in disk.root.rglob("*")) // 1024


@pytest.mark.parametrize(("language", "encoding"), [("C", "ascii"), ("de_DE", "ISO-8859-1"), ("ja_JP", "EUC-JP")])
def test_what_is_written_is_utf_8_in_every_locale(preset, store, tmp_path, language, encoding):
    environment = os.environ | {
        "LC_ALL": language,
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONWARNDEFAULTENCODING": "1",
    }
    if language != "C":
        if shutil.which("localedef") is None:
            pytest.skip("needs localedef")
        subprocess.run(["localedef", "--force", "-i", language, "-f", encoding, tmp_path / language], capture_output=True)
        environment["LOCPATH"] = str(tmp_path)
    ask = [sys.executable, "-c", "import codecs, locale; print(codecs.lookup(locale.getpreferredencoding(False)).name)"]
    found = subprocess.run(ask, env=environment, capture_output=True, text=True).stdout.strip()
    if found != codecs.lookup(encoding).name:
        pytest.skip(f"this machine has no {language}.{encoding}")
    (before,) = (path.read_bytes() for path in store.glob("artifacts/evaluate/*/predictions.csv"))
    command = [sys.executable, "-m", "physion.cli", "stage", "evaluate", "--force", "-p", preset, "-s", store]
    ended = subprocess.run(command, env=environment, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    assert not re.search(rb"/physion/(?!\S*site-packages)\S+: EncodingWarning", ended.stderr)
    (report,) = (path.read_bytes() for path in store.glob("artifacts/evaluate/*/report.html"))
    assert "\N{EN DASH}" in report.decode("utf-8")
    assert before == next(store.glob("artifacts/evaluate/*/predictions.csv")).read_bytes()


def test_too_few_videos_to_learn_from_are_said_before_one_is_decoded(stage, dataset, tmp_path):
    """One training video; one readout video a scenario, of which one is held out."""
    for video in [*dataset.videos("training")[1:], *(v for v in dataset.videos("readout") if "_0000_img" not in v.name)]:
        video.unlink()
    dataset.labels("readout").write_text(",ground truth outcome\npilot_collide_0000,True\npilot_drop_0000,False\n")
    for subset, said in (
        ("training", "all 1 training videos are held out, and none is left to learn from: there are too few"),
        ("readout", "the outcome of all 1 readout videos that are not held out is "),
    ):
        assert stage("fetch", "--subset", subset, dataset=dataset).code == 0
        clearly(stage("frames", "--subset", subset, dataset=dataset), 3, said)
        assert nothing_published(tmp_path / "store", "frames") == ["study.json"]
        shutil.rmtree(tmp_path / "store" / "artifacts" / "frames")
