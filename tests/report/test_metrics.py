import json

import numpy as np
import pytest
from scipy.stats import binomtest, norm
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from physion.report.metrics import (
    PAPER_THRESHOLDS,
    Interval,
    accuracy,
    balanced_accuracy,
    brier,
    choose_threshold,
    compare_modes,
    evaluate_predictions,
    headline,
    over_videos,
    paired_p_value,
    paper_protocol,
    reliability,
    roc_auc,
    videos_needed,
)


def pair_count_auc(scores, labels):
    """The definition: every positive against every negative."""
    wins = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    return float(np.mean(wins))


def study(videos=120, seeds=3, separation=1.0, rng_seed=0):
    rng = np.random.default_rng(rng_seed)
    scenarios = [("Collide", "Drop", "Roll")[index % 3] for index in range(videos)]
    labels = rng.random(videos) < 0.55
    logits = separation * (labels - 0.5) + rng.normal(size=videos) + 0.5 * rng.normal(size=(seeds, videos))
    return [f"video_{index:03d}" for index in range(videos)], scenarios, labels, 1 / (1 + np.exp(-logits))


class TestOneReadout:
    def test_by_hand(self):
        scores = np.array([0.9, 0.6, 0.4, 0.2, 0.7])
        labels = np.array([True, True, True, False, False])
        assert accuracy(scores, labels, 0.5) == pytest.approx(3 / 5)
        assert balanced_accuracy(scores, labels, 0.5) == pytest.approx((2 / 3 + 1 / 2) / 2)
        assert roc_auc(scores, labels) == pytest.approx(4 / 6)

    def test_a_score_at_the_threshold_is_negative(self):
        assert accuracy(np.array([0.5]), np.array([False]), 0.5) == 1.0

    @pytest.mark.parametrize("levels", [3, 10, 10_000])  # many ties, some, none
    def test_auc_counts_pairs(self, levels):
        rng = np.random.default_rng(levels)
        for _ in range(20):
            scores, labels = rng.integers(levels, size=40) / levels, rng.random(40) < 0.4
            assert roc_auc(scores, labels) == pytest.approx(pair_count_auc(scores, labels))

    @pytest.mark.parametrize("labels", [[True, True], [False, False], []])
    def test_undefined_without_both_classes(self, labels):
        scores = np.full(len(labels), 0.3)
        assert roc_auc(scores, np.array(labels, dtype=bool)) is None
        assert balanced_accuracy(scores, np.array(labels, dtype=bool)) is None

    def test_refuses_what_cannot_be_scored(self):
        with pytest.raises(ValueError, match="no videos"):
            accuracy(np.array([]), np.array([], dtype=bool))
        with pytest.raises(ValueError, match=r"in \[0, 1\], got nan"):
            roc_auc(np.array([0.1, np.nan]), np.array([True, False]))
        with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
            roc_auc(np.array([0.1, 0.2]), np.array([True, False, True]))
        with pytest.raises(ValueError, match="booleans"):
            roc_auc(np.array([0.1, 0.2]), np.array(["True", "False"]))


class TestChooseThreshold:
    def test_takes_the_midpoint_that_separates(self):
        scores, labels = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, False, True, True])
        assert choose_threshold(scores, labels) == pytest.approx(0.25)

    def test_half_stands_where_it_is_as_good(self):
        assert choose_threshold(np.array([0.1, 0.45, 0.8]), np.array([False, False, True])) == 0.5

    def test_equal_distance_takes_the_lower(self):
        # 0.4 and 0.6 each get three of four right, 0.5 only two.
        scores = np.array([0.35, 0.45, 0.55, 0.65])
        labels = np.array([False, True, False, True])
        assert choose_threshold(scores, labels) == pytest.approx(0.4)

    @pytest.mark.parametrize(
        ("scores", "labels"),
        [([0.7, 0.7, 0.7], [True, False, True]), ([0.2, 0.9], [True, True]), ([0.2, 0.9], [False, False]), ([], [])],
    )
    def test_half_without_information(self, scores, labels):
        assert choose_threshold(np.array(scores), np.array(labels, dtype=bool)) == 0.5

    def test_as_good_as_any_threshold_between_scores(self):
        rng = np.random.default_rng(0)
        for _ in range(50):
            labels = rng.random(30) < 0.3
            scores = np.clip(0.3 * labels + rng.integers(20, size=30) / 30, 0, 1)
            chosen = balanced_accuracy(scores, labels, choose_threshold(scores, labels))
            levels = np.unique(scores)
            others = [balanced_accuracy(scores, labels, limit) for limit in (levels[:-1] + levels[1:]) / 2]
            assert chosen == pytest.approx(max([*others, balanced_accuracy(scores, labels, 0.5)]))

    def test_order_of_the_videos_does_not_matter(self):
        rng = np.random.default_rng(3)
        scores, labels = rng.random(50), rng.random(50) < 0.5
        order = rng.permutation(50)
        assert choose_threshold(scores, labels) == choose_threshold(scores[order], labels[order])


class TestAgreementWithScikitLearn:
    @pytest.mark.parametrize("levels", [4, 1000])  # many ties, hardly any
    def test_every_metric(self, levels):
        rng = np.random.default_rng(levels)
        for _ in range(10):
            scores, labels = rng.integers(levels + 1, size=80) / levels, rng.random(80) < 0.4
            called = scores > 0.3
            assert accuracy(scores, labels, 0.3) == pytest.approx(sklearn_metrics.accuracy_score(labels, called))
            expected = sklearn_metrics.balanced_accuracy_score(labels, called)
            assert balanced_accuracy(scores, labels, 0.3) == pytest.approx(expected)
            assert roc_auc(scores, labels) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores))
            assert brier(scores, labels) == pytest.approx(sklearn_metrics.brier_score_loss(labels, scores))

    @pytest.mark.parametrize("scores", [np.random.default_rng(0).random(500), np.arange(11) / 10, np.full(7, 0.35)])
    def test_reliability(self, scores):
        labels = np.random.default_rng(1).random(len(scores)) < scores
        found = reliability(scores, labels)
        share, said = calibration_curve(labels, scores, n_bins=10)
        assert [row["positive"] for row in found] == pytest.approx(share)
        assert [row["said"] for row in found] == pytest.approx(said)
        assert sum(row["n"] for row in found) == len(scores)
        assert all(row["low"] - 1e-9 <= row["said"] <= row["high"] + 1e-9 for row in found)


class TestIntervals:
    """Known truth: each video has a difficulty, each seed a skill, and each of both their own luck."""

    @staticmethod
    def study(rng, seeds, videos=200, skill=0.1):
        """Predictions whose accuracy, over all videos and seeds there could be, is 60 %."""
        spread = np.sqrt(2 + skill**2)
        luck = rng.normal(size=videos) + skill * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, videos))
        right, labels = norm.ppf(0.6) * spread + luck > 0, rng.random(videos) < 0.5
        return labels, np.where(right, labels, ~labels) * 0.8 + 0.1

    @pytest.mark.parametrize(("seeds", "skill"), [(1, 0.0), (3, 0.1), (3, 0.2)])
    def test_they_cover_the_truth_at_least_about_as_often_as_they_say(self, seeds, skill):
        rng, names = np.random.default_rng(seeds), [f"{number:03d}" for number in range(200)]
        covered = 0
        for trial in range(150):
            labels, scores = self.study(rng, seeds, skill=skill)
            found = evaluate_predictions(names, list("abcd") * 50, labels, scores, [0.5] * seeds, resamples=200, seed=trial)
            interval = found["overall"]["accuracy"]
            covered += interval["low"] <= 0.6 <= interval["high"]
        assert covered / 150 >= 0.91

    def test_seeds_that_differ_widen_them(self):
        labels, strata = np.tile([True, False], 100), ["a"] * 200
        names = [f"{number:03d}" for number in range(200)]
        rows = [np.where(np.arange(200) < 200 * share, labels, ~labels) * 0.8 + 0.1 for share in (0.4, 0.6, 0.8)]
        widths = []
        for chosen in (rows, [rows[1]] * 3):
            found = evaluate_predictions(names, strata, labels, np.array(chosen), [0.5] * 3)["overall"]["accuracy"]
            assert found["value"] == pytest.approx(0.6)
            widths.append(found["high"] - found["low"])
        assert widths[0] > 2 * widths[1]

    def test_they_leave_out_the_mix_of_scenarios(self):
        labels = np.tile([True, False], 100)
        scores = np.where(np.repeat([True, False], 100), labels, ~labels) * 0.8 + 0.1
        names, values = [f"{number:03d}" for number in range(200)], []
        for strata in (["easy"] * 100 + ["hard"] * 100, ["all"] * 200):
            values.append(evaluate_predictions(names, strata, labels, scores[None], [0.5])["overall"]["accuracy"])
        assert values[0] == {"value": 0.5, "low": 0.5, "high": 0.5, "spread": None}
        assert values[1]["low"] < 0.45
        assert values[1]["high"] > 0.55


class TestEvaluatePredictions:
    def test_values_are_means_over_seeds(self):
        names, scenarios, labels, scores = study()
        thresholds = [0.4, 0.5, 0.6]
        found = evaluate_predictions(names, scenarios, labels, scores, thresholds, resamples=200)
        by_seed = [accuracy(row, labels, limit) for row, limit in zip(scores, thresholds, strict=True)]
        overall = found["overall"]
        assert overall["accuracy"]["value"] == pytest.approx(np.mean(by_seed))
        assert overall["accuracy"]["spread"] == pytest.approx(np.std(by_seed, ddof=1))
        assert overall["roc_auc"]["value"] == pytest.approx(np.mean([pair_count_auc(row, labels) for row in scores]))
        assert [row["threshold"] for row in overall["per_seed"]] == thresholds
        assert [row["accuracy"] for row in overall["per_seed"]] == pytest.approx(by_seed)
        assert found["n"] == 120
        assert found["positives"] == labels.sum()
        assert found["chance"] == pytest.approx(max(labels.mean(), 1 - labels.mean()))
        for metric in ("accuracy", "balanced_accuracy", "roc_auc", "brier"):
            assert overall[metric]["low"] < overall[metric]["value"] < overall[metric]["high"]

    def test_intervals_equal_a_plain_loop_over_resampled_videos(self):
        """The weighted fast path against drawing videos and scoring them, on the same draws."""
        names, scenarios, labels, scores = study(videos=30, seeds=1)
        found = evaluate_predictions(names, scenarios, labels, scores, [0.5], resamples=100, seed=4)
        rng, strata = np.random.default_rng(4), np.array(scenarios)
        counts = np.zeros((100, 30), dtype=int)
        for scenario in sorted(set(scenarios)):
            members = np.flatnonzero(strata == scenario)
            counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=100)
        metrics = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy, "roc_auc": roc_auc, "brier": brier}
        plain = {name: [] for name in metrics}
        for row in counts:
            drawn = np.repeat(np.arange(30), row)
            for name, metric in metrics.items():
                plain[name].append(metric(scores[0, drawn], labels[drawn]))
        for name, samples in plain.items():
            entry = found["overall"][name]
            assert [entry["low"], entry["high"]] == pytest.approx(np.percentile(samples, [2.5, 97.5]))

    def test_scenarios(self):
        names, scenarios, labels, scores = study()
        found = evaluate_predictions(names, scenarios, labels, scores, [0.5] * 3, resamples=200)["per_scenario"]
        assert list(found) == ["Collide", "Drop", "Roll"]
        members = np.array(scenarios) == "Drop"
        right = ((scores > 0.5) == labels)[:, members].mean()
        assert found["Drop"]["accuracy"]["value"] == pytest.approx(right)
        assert found["Drop"]["n"] == 40
        assert found["Drop"]["positives"] == labels[members].sum()
        assert sum(entry["n"] for entry in found.values()) == 120
        assert found["Drop"]["roc_auc"]["value"] == pytest.approx(
            np.mean([roc_auc(row[members], labels[members]) for row in scores])
        )

    def test_the_mean_over_scenarios_counts_each_alike(self):
        names, scenarios, labels, scores = study()
        scenarios = ["Roll" if number < 90 else "Drop" for number in range(120)]
        found = evaluate_predictions(names, scenarios, labels, scores, [0.5] * 3, resamples=200)
        for metric in ("accuracy", "balanced_accuracy", "roc_auc", "brier"):
            of_each = [entry[metric]["value"] for entry in found["per_scenario"].values()]
            mean = found["scenario_mean"][metric]
            assert mean["value"] == pytest.approx(np.mean(of_each))
            assert mean["low"] < mean["value"] < mean["high"]
        assert found["scenario_mean"]["accuracy"]["value"] != found["overall"]["accuracy"]["value"]

    def test_by_first_contact(self):
        names, scenarios, labels, scores = study()
        frames = [50 + number % 40 if positive else None for number, positive in enumerate(labels)]
        order = np.random.default_rng(9).permutation(120)
        arguments = [[names[i] for i in order], [scenarios[i] for i in order], labels[order], scores[:, order], [0.5] * 3]
        found = evaluate_predictions(*arguments, first_contacts=[frames[i] for i in order])["by_first_contact"]
        assert [(row["from"], row["to"]) for row in found] == [(45, 54), (55, 64), (65, 74), (75, 149)]
        assert sum(row["n"] for row in found) == labels.sum()
        here = np.array([frame is not None and 55 <= frame < 65 for frame in frames])
        assert found[1]["value"] == pytest.approx((scores[:, here] > 0.5).mean())

    def test_json_and_the_same_for_any_order_of_videos(self):
        names, scenarios, labels, scores = study()
        order = np.random.default_rng(9).permutation(120)
        first = evaluate_predictions(names, scenarios, labels, scores, [0.5] * 3, resamples=100)
        second = evaluate_predictions(
            [names[i] for i in order], [scenarios[i] for i in order], labels[order], scores[:, order], [0.5] * 3, resamples=100
        )
        assert json.dumps(first, allow_nan=False) == json.dumps(second, allow_nan=False)

    def test_one_class_and_one_seed(self):
        found = evaluate_predictions(["a", "b"], ["Roll", "Roll"], np.array([True, True]), np.array([[0.9, 0.1]]), [0.5])
        assert found["overall"]["roc_auc"] == {"value": None, "low": None, "high": None, "spread": None}
        assert found["overall"]["balanced_accuracy"]["value"] is None
        assert found["overall"]["accuracy"]["value"] == 0.5
        assert found["overall"]["accuracy"]["spread"] is None
        assert found["chance"] == 1.0
        json.dumps(found, allow_nan=False)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"names": ["a", "a"]}, "video a is listed twice"),
            ({"scenarios": ["Roll"]}, "2 names, 1 scenarios, 2 labels"),
            ({"names": [], "scenarios": [], "labels": np.array([], dtype=bool)}, "at least one video"),
            ({"probabilities_by_seed": np.zeros((2, 2))}, r"= \[1, 2\]"),
            ({"probabilities_by_seed": np.array([[0.5, 1.5]])}, r"in \[0, 1\], got 1.5"),
        ],
    )
    def test_errors_say_what_is_wrong(self, change, message):
        good = {
            "names": ["a", "b"],
            "scenarios": ["Roll", "Roll"],
            "labels": np.array([True, False]),
            "probabilities_by_seed": np.array([[0.9, 0.1]]),
            "thresholds_by_seed": [0.5],
        }
        with pytest.raises(ValueError, match=message):
            evaluate_predictions(**(good | change))


class TestCompareModes:
    def test_pairing_narrows_the_interval(self):
        names, scenarios, labels, scores = study(seeds=1)
        better = scores.copy()
        wrong = np.flatnonzero((scores[0] > 0.5) != labels)[:8]
        better[0, wrong] = labels[wrong]  # eight videos more, the others alike
        found = compare_modes(names, scenarios, labels, (better, [0.5]), (scores, [0.5]))
        assert found.value == pytest.approx(8 / 120)
        assert found.low > 0
        one = evaluate_predictions(names, scenarios, labels, scores, [0.5])["overall"]["accuracy"]
        assert found.high - found.low < one["high"] - one["low"]

    def test_same_mode_differs_by_nothing(self):
        names, scenarios, labels, scores = study()
        mode = (scores, [0.5] * 3)
        assert compare_modes(names, scenarios, labels, mode, mode) == Interval(0, 0, 0)

    def test_p_values_are_mcnemar_s(self):
        names, scenarios, labels, scores = study(seeds=1)
        rng = np.random.default_rng(0)
        for wins, losses in ((8, 0), (12, 5), (4, 4)):
            first, second = scores.copy(), scores.copy()
            differ = rng.choice(120, wins + losses, replace=False)
            first[0, differ], second[0, differ] = labels[differ] * 0.8 + 0.1, ~labels[differ] * 0.8 + 0.1
            first[0, differ[wins:]], second[0, differ[wins:]] = second[0, differ[wins:]], first[0, differ[wins:]]
            found = paired_p_value(names, scenarios, labels, (first, [0.5]), (second, [0.5]))
            assert found == pytest.approx(binomtest(wins, wins + losses).pvalue, abs=0.015)

    def test_p_values_of_nothing_are_spread_evenly(self):
        names, scenarios, labels, _ = study()
        found = []
        for seed in range(100):
            scores = np.random.default_rng(seed).random((2, 3, 120))
            found.append(paired_p_value(names, scenarios, labels, (scores[0], [0.5] * 3), (scores[1], [0.5] * 3)))
        assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.08)
        assert np.mean(found) == pytest.approx(0.5, abs=0.1)


def test_so_many_videos_tell_five_points_from_chance():
    """Against the exact test: with as many it finds the effect about as often as it should, with half of them not."""
    videos = videos_needed(0.05)
    assert 750 < videos < 800

    def found(count):
        rights = np.arange(count + 1)
        critical = min(k for k in rights[count // 2 :] if binomtest(int(k), count).pvalue < 0.05)
        return sum(np.exp(log_binomial(count, rights[critical:], 0.55)))

    assert 0.75 < found(videos) < 0.85
    assert found(videos // 2) < 0.6


def log_binomial(count, rights, share):
    from scipy.stats import binom

    return binom.logpmf(rights, count, share)


class TestPaperProtocol:
    def test_equals_the_triple_loop(self):
        rng = np.random.default_rng(2)
        scores, labels = rng.random((3, 4, 25)), rng.random(25) < 0.5
        best = max(accuracy(scores[r, e], labels, limit) for r in range(3) for e in range(4) for limit in PAPER_THRESHOLDS)
        found = paper_protocol(scores, labels)
        assert found["accuracy"] == best
        assert accuracy(scores[found["seed_index"], found["epoch_index"]], labels, found["threshold"]) == best
        assert found["best_per_seed"][found["seed_index"]] == best
        assert found["candidates"] == 72
        assert found["selected_on_test"] is True
        json.dumps(found)

    def test_ties_take_the_first(self):
        found = paper_protocol(np.full((2, 2, 3), 0.9), np.array([True, True, False]))
        assert (found["seed_index"], found["epoch_index"], found["threshold"]) == (0, 0, 0.4)

    def test_refuses_other_shapes(self):
        with pytest.raises(ValueError, match=r"\[seeds, epochs, videos\] for 3 labels"):
            paper_protocol(np.zeros((2, 3)), np.array([True, False, True]))


def test_headline():
    names, scenarios, labels, scores = study()
    metrics = evaluate_predictions(names, scenarios, labels, scores, [0.5] * 3, resamples=100)
    sentence = headline({"observed": metrics, "rollout": metrics})
    value = 100 * metrics["overall"]["accuracy"]["value"]
    assert sentence.startswith(f"Observed {value:.1f} % [")
    assert f", rollout {value:.1f} % [" in sentence
    assert sentence.endswith("(120 test videos).")


def test_videos_alone_in_their_scenario_are_drawn_together():
    values, ones = np.arange(8.0), np.ones(8)
    alone = over_videos(values, ones, list("abcdefgh"), 500)
    assert alone == over_videos(values, ones, ["a"] * 8, 500)
    assert alone["low"] < alone["value"] == 3.5 < alone["high"]
    # Those of a scenario that has several are drawn within it.
    levels = np.array([0, 0, 0, 0, 9, 9, 9, 9.0])
    assert over_videos(levels, ones, ["a"] * 4 + ["b"] * 4, 500) == {"value": 4.5, "low": 4.5, "high": 4.5, "n": 8}
