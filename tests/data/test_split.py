import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from physion.data.layout import Video, place_of, video_path
from physion.data.split import family, hold_out
from physion.simulation import SCENARIOS


def videos(count, scenarios=("Drop", "Roll", "Link")):
    return [Video(f"{scenario}-{n}", f"{scenario}/{n}.mp4", scenario) for scenario in scenarios for n in range(count)]


def simulated(count):
    """As many readout clips of each scenario, named as the stage `simulate` names them."""
    paths = [(name, video_path("readout", name, f"{name.lower()}_readout_s0", n)) for name in SCENARIOS for n in range(count)]
    return [Video(Path(path).stem, path, scenario) for scenario, path in paths]


def chosen(some, share=0.1):
    return {video.name for video in hold_out(some, share) if video.heldout}


def families(some, name_of=family):
    """Families of the training and of the held-out videos, with a scenario's name before each."""
    return [{(v.scenario, name_of(v.name)) for v in some if v.heldout == heldout} for heldout in (False, True)]


def test_the_held_out_part_is_stratified():
    by_scenario = Counter(name.split("-")[0] for name in chosen(videos(30)))
    assert by_scenario == {"Drop": 3, "Roll": 3, "Link": 3}
    by_scenario = Counter(name.split("-")[0] for name in chosen(videos(25)))
    assert sorted(by_scenario.values()) == [2, 3, 3]  # 7.5 are wanted
    assert len(chosen(videos(1))) == 1
    assert chosen(videos(25), 0) == set()
    assert len(chosen(videos(10), 0.7)) == 21  # as many as wanted, also where 0.7 * 10 is 7.000000000000001


def test_the_held_out_part_depends_on_the_names_alone():
    some = videos(25)
    assert chosen(some) == chosen(some[::-1])
    assert [video.name for video in hold_out(some, 0.1)] == [video.name for video in some]
    assert chosen(some, 0.1) < chosen(some, 0.5)


@pytest.mark.parametrize(("count", "share", "heldout"), [(2, 0.25, 4), (10, 0.2, 16), (13, 0.05, 6)])
def test_simulated_pairs_are_not_torn_apart(count, share, heldout):
    some = hold_out(simulated(count), share)
    training, held = families(some)
    assert not training & held
    assert len(training) + len(held) == 8 * -(-count // 2)
    assert sum(video.heldout for video in some) == heldout
    assert training


TWINS = [
    "pilot_it2_drop_simple_box_0003_img",
    "pilot_it2_drop_simple_box_1_dis_1_occ_0003_img",
    "pilot_it2_drop_simple_box_2_dis_2_occ_0003_img",
    "pilot_it2_drop_simple_tdw_1_dis_1_occ_0003_img",
    "pilot_it2_drop_simple_tdw_2_dis_2_occ_0003_img",
]
NO_TWINS = [
    "pilot_it2_drop_simple_box_0004_img",
    "pilot_it2_drop_sizes_box_0003_img",
    "pilot_linking_nl1-8_mg000_aCylcap_bCyl_tdwroom_0003_img",
    "pilot_linking_nl1-8_ms03_aCylcap_bCyl_occ1_dis1_tdwroom_0003_img",
    "pilot-containment-box_0003_img",
    "pilot-containment-bowl_0003_img",
    "test10_0003_img",
    "test11_0003_img",
    "drop_training_s0_0003_img",
    "drop_training_s1_0003_img",
    "drop_training_s0_0004_img",
    "drop_training_s0_0005_img",
]


def test_a_family_is_an_event():
    assert len({family(name) for name in TWINS}) == 1
    assert len({family(name) for name in [TWINS[0], *NO_TWINS]}) == len(NO_TWINS)  # the last two are a pair


def other_rooms(name):
    """The rule of the issue, written otherwise: what comes between `_box` or `_tdw` and the number at the end is left out."""
    return re.sub(r"_(box|tdw)(_\d_dis_\d_occ)?_(\d{4}_img)", r"_\3", name)


@pytest.mark.parametrize(("subset", "count", "heldout"), [("training", 15_998, 800), ("readout", 8_005, 402)])
def test_no_official_video_is_held_out_while_its_twin_trains(official_names, subset, count, heldout):
    found = [re.fullmatch(r".*/(\w+)_\w+_MP4s/(.*)\.mp4", path) for path in official_names if place_of(path) == (subset, path)]
    some = hold_out([Video(match[2], match[0], match[1]) for match in found], 0.05)
    assert (len(some), sum(video.heldout for video in some)) == (count, heldout)
    for rule in (family, other_rooms):
        training, held = families(some, rule)
        assert not training & held
    largest = Counter((video.scenario, other_rooms(video.name)) for video in some).most_common(1)[0][1]
    assert largest == 5
    by_scenario = Counter(video.scenario for video in some if video.heldout)
    assert all(abs(by_scenario[name] - heldout / 8) <= 5 for name in SCENARIOS)


def test_the_official_names_are_all_there(official_names):
    assert Counter(subset for subset, _ in map(place_of, official_names)) == {
        "training": 15_998,
        "readout": 8_005,
        "test": 1_200,
    }
    digest = hashlib.sha256("\n".join(official_names).encode()).hexdigest()
    assert digest == "9756e880fe04076e1b7e772d2d32bc1fbb60ae2d1e2435acdc3034e742dc4673"
