import re

import pytest

from physion.data.layout import (
    GLITCHY,
    LABELS,
    OUTCOME,
    home_of,
    label_key,
    parse_labels,
    place_of,
    read_subset,
    video_path,
    write_labels,
)
from physion.errors import DataError

# Names as the authors' archives have them.
TRAINING = "PhysionTrainMP4s/Dominoes_training_MP4s/pilot_dominoes_0mid_d3chairs_o1plants_tdwroom_0001_img.mp4"
READOUT = "PhysionTrainMP4s/Support_readout_MP4s/pilot_towers_nb2_fr015_SJ010_mono0_dis0_occ0_tdwroom_stable_0012_img.mp4"
TEST = "PhysionTestMP4s/Dominoes/mp4s-redyellow/pilot_dominoes_0mid_d3chairs_o1plants_tdwroom-redyellow_0013_img.mp4"


def read(subset, files):
    return read_subset(subset, files, lambda name: files[name])


def test_physions_own_names_are_understood():
    key = "pilot_towers_nb2_fr015_SJ010_mono0_dis0_occ0_tdwroom_stable_0012"
    test_key = "pilot_dominoes_0mid_d3chairs_o1plants_tdwroom_0013_img"
    files = {
        TRAINING: b"",
        READOUT: b"",
        TEST: b"",
        LABELS["readout"]: write_labels([(key, True)]),
        LABELS["test"]: write_labels([(test_key, False)]),
        "PhysionTestMP4s/Dominoes/mp4s/pilot_dominoes_0mid_d3chairs_o1plants_tdwroom_0013_img.mp4": b"",
        "PhysionTestMP4s/README.txt": b"",
    }
    (training,), (readout,), (test,) = (read(subset, files) for subset in ("training", "readout", "test"))
    assert (training.scenario, training.label) == ("Dominoes", None)
    assert (readout.scenario, readout.label) == ("Support", True)
    assert (test.scenario, test.label) == ("Dominoes", False)
    assert test.name == "pilot_dominoes_0mid_d3chairs_o1plants_tdwroom-redyellow_0013_img"
    assert label_key("readout", readout.name) == key  # drops the trailing _img
    assert label_key("test", test.name) == test_key  # keeps _img, drops -redyellow


def test_a_name_that_holds_img_elsewhere_keeps_it():
    assert label_key("readout", "pilot_img_0001_img") == "pilot_img_0001"
    assert label_key("test", "pilot_img-redyellow_0001_img") == "pilot_img_0001_img"


@pytest.mark.parametrize("subset", ["training", "readout", "test"])
def test_where_a_video_is_put_is_where_it_is_found(subset):
    files = {video_path(subset, "Roll", "pilot_roll", 7): b""}
    if subset in LABELS:
        name = re.sub(r"\.mp4$", "", next(iter(files)).rsplit("/", 1)[1])
        files[LABELS[subset]] = write_labels([(label_key(subset, name), True)])
    (video,) = read(subset, files)
    assert video.scenario == "Roll"


@pytest.mark.parametrize("above", ["", "Physion/", "/data/x y/PhysionTestMP4s/", "./a/.././b/", "a/.b/", "../"])
def test_a_video_is_known_by_the_folders_of_its_scenario(above):
    hidden = ".b" in above or ".." in above
    for subset, place in (("training", TRAINING), ("readout", READOUT), ("test", TEST)):
        below = place.partition("/")[2]
        for path in (above + below, above + below.replace(".mp4", ".MP4")):
            assert place_of(path) == (None if hidden else (subset, place))
            assert home_of(path) == (above.rstrip("/") or path.split("/")[0]) or not above
        assert place_of(above + below.replace("pilot_", "._pilot_")) is None
        assert place_of(above + below.replace("_MP4s", "_PNGs").replace("-redyellow/", "/")) is None


def test_glitchy_test_stimuli_are_left_out():
    stems = ["pilot_a_0001_img", "pilot_b_0002_img", "pilot_c-redyellow_0003_img"]
    files = {f"PhysionTestMP4s/Roll/mp4s-redyellow/pilot_{n}-redyellow_000{k}_img.mp4": b"" for k, n in enumerate("abc", 1)}
    files[LABELS["test"]] = write_labels([(f"pilot_{n}_000{k}_img", True) for k, n in enumerate("abc", 1)])
    assert len(read("test", files)) == 3
    # A line that names -redyellow can match nothing, as three of the authors' 29 lines do not.
    files[GLITCHY] = f"{stems[0]}\n\n  {stems[2]}  \n".encode()
    assert [video.name[6] for video in read("test", files)] == ["b", "c"]


def good(subset="readout"):
    names = [video_path(subset, scenario, f"pilot_{scenario.lower()}", 1) for scenario in ("Drop", "Roll")]
    keys = [label_key(subset, name.rsplit("/", 1)[1].removesuffix(".mp4")) for name in names]
    return {**dict.fromkeys(names, b""), LABELS[subset]: write_labels([(key, True) for key in keys])}, names, keys


@pytest.mark.parametrize("subset", ["readout", "test"])
def test_every_problem_is_listed_at_once(subset):
    files, names, keys = good(subset)
    folder = "PhysionTestMP4s/Link/mp4s-redyellow" if subset == "test" else "PhysionTrainMP4s/Link_readout_MP4s"
    files[f"{folder}/{names[0].rsplit('/', 1)[1]}"] = b""  # the name of a video of another scenario
    extra = video_path(subset, "Contain", "pilot_unlabelled", 3)
    files[extra] = b""
    rows = [",ground truth outcome", f"{keys[0]},True", f"{keys[0]},False", f"{keys[1]},perhaps", "pilot_nobody,True", ""]
    files[LABELS[subset]] = "\n".join(rows).encode()
    with pytest.raises(DataError) as caught:
        read(subset, files)
    text = str(caught.value)
    for said in (
        "2 videos have this name",
        f"{extra}: no label in {LABELS[subset]}",
        "label 'pilot_nobody' belongs to no video",
        f"line 3: a second label for '{keys[0]}'",
        f"line 4: the outcome of '{keys[1]}' is 'perhaps', not True or False",
    ):
        assert said in text
    assert text.startswith("6 problems in the dataset:")  # the video of the malformed row has no label either
    assert caught.value.exit_code == 3


def test_a_long_list_of_problems_is_cut():
    files = {video_path("readout", "Drop", "pilot", n): b"" for n in range(50)} | {LABELS["readout"]: write_labels([])}
    with pytest.raises(DataError) as caught:
        read("readout", files)
    assert "50 problems" in str(caught.value)
    assert str(caught.value).endswith("... and 30 more")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "the first column must be unnamed"),
        (b"name,ground truth outcome\n", "the first column must be unnamed and hold stimulus names, not 'name'"),
        (b",outcome\nx,True\n", f"no column '{OUTCOME}' \\(columns: outcome\\)"),
        (b"\n", "the first column must be unnamed"),
        (b"\xff\xfe\x00", "not a CSV file"),
    ],
)
def test_a_file_that_is_no_label_file(text, said):
    with pytest.raises(DataError, match=said):
        parse_labels("labels.csv", text)


def test_labels_as_pandas_writes_them():
    text = "\ufeff,stim,ground truth outcome\r\na,1,True\r\nb,2,False\r\n".encode()
    assert parse_labels("x", text) == ({"a": True, "b": False}, [])
    assert parse_labels("x", text.replace(b",stim", b"Unnamed: 0,stim"))[0] == {"a": True, "b": False}


def test_labels_survive_writing_and_reading():
    rows = [("a", True), ('odd,"name"', False)]
    assert parse_labels("x", write_labels(rows)) == (dict(rows), [])


def test_no_videos_or_no_label_file():
    with pytest.raises(DataError, match=r"the dataset holds no training videos"):
        read("training", {READOUT: b""})
    with pytest.raises(DataError, match=r"readout_labels\.csv: the label file is missing"):
        read("readout", {READOUT: b""})
