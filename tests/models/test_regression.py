"""The second readout, against scikit-learn's own pieces put together plainly."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from physion.models.regression import STRENGTHS, concatenated, fit, pooled


def videos(count=80, features=12, signal=1.0, seed=0):
    """Features [N, F] whose first one tells the label, in units that differ, and families of two."""
    rng = np.random.default_rng(seed)
    labels = rng.random(count) < 0.5
    values = rng.normal(size=(count, features))
    values[:, 0] += signal * (2 * labels - 1)
    return values * 10.0 ** rng.integers(-3, 4, features) + 5, labels, [str(number // 2) for number in range(count)]


@pytest.mark.parametrize("features", [12, 200])  # fewer than videos, and more: then they are turned first
def test_it_is_the_plain_protocol(features):
    values, labels, families = videos(features=features)
    found = fit("logistic", values, labels, families, seed=3)
    plain = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)),
        {"logisticregression__C": STRENGTHS},
        cv=StratifiedGroupKFold(5, shuffle=True, random_state=3),
    ).fit(values, labels, groups=families)
    assert found.strength == pytest.approx(plain.best_params_["logisticregression__C"], rel=1e-6)
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=3).split(values, labels, families))
    sizes = np.array([len(held) for _, held in folds])
    right = np.stack([plain.cv_results_[f"split{k}_test_score"] for k in range(5)]) * sizes[:, None]
    elsewhere = [right[k, np.delete(right, k, axis=0).sum(axis=0).argmax()] for k in range(5)]
    assert found.cross_validated == pytest.approx(sum(elsewhere) / sizes.sum(), abs=1e-6)
    new = videos(features=features, seed=1)[0]
    np.testing.assert_allclose(found(new), plain.predict_proba(new)[:, 1], atol=2e-3)


@pytest.mark.parametrize("kind", ["logistic", "trees"])
def test_it_learns_what_there_is_and_only_that(kind):
    values, labels, families = videos(count=200)
    new, answers, _ = videos(count=200, seed=1)
    new = new * values.std(0) / new.std(0)
    new += values.mean(0) - new.mean(0)
    assert ((fit(kind, values, labels, families)(new) > 0.5) == answers).mean() > 0.7
    shuffled = np.random.default_rng(0).permutation(labels)
    found = fit(kind, values, shuffled, families)
    assert 0.35 < ((found(new) > 0.5) == answers).mean() < 0.65
    assert found.cross_validated < 0.62


def test_the_choice_of_strength_promises_nothing_that_is_not_there():
    """Features without an answer: the accuracy to expect is one half, where that of the best strength is higher."""
    expected, best = [], []
    for seed in range(30):
        values, labels, families = videos(count=60, signal=0.0, seed=seed)
        expected.append(fit("logistic", values, labels, families).cross_validated)
        folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(values, labels, families))
        grid = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": STRENGTHS}, cv=folds
        )
        best.append(grid.fit(values, labels).best_score_)
    assert np.mean(best) > 0.53
    assert abs(np.mean(expected) - 0.5) < 0.03


def test_a_family_is_in_one_fold():
    """Each family has a feature of its own and one label: who sees a twin knows the answer, who does not can only guess."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.random(60) < 0.5, 2)
    values = np.repeat(np.eye(60), 2, axis=0)
    alone = fit("logistic", values, labels, [str(number) for number in range(120)])
    together = fit("logistic", values, labels, [str(number // 2) for number in range(120)])
    assert alone.cross_validated > 0.85
    assert together.cross_validated < 0.65


def test_the_same_again():
    values, labels, families = videos(features=200)
    first, second = (fit("logistic", values, labels, families)(values) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("labels", [[True] * 6, [False] * 6, [True, False, False, False, False, False]])
def test_too_few_to_choose(labels):
    """Scenarios of small studies: no fold can be made, and yet there is an answer."""
    found = fit("logistic", np.arange(12.0).reshape(6, 2), np.array(labels), list("abcdef"))
    assert found.cross_validated is None
    assert np.isfinite(found(np.ones((3, 2)))).all()


def test_without_features_it_says_the_share_of_positives():
    found = fit("logistic", np.empty((8, 0)), np.arange(8) < 2, list("abcdefgh"))
    np.testing.assert_array_equal(found(np.empty((3, 0))), [0.25] * 3)


def test_pooling_and_concatenating():
    clips = np.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_array_equal(pooled(clips), [[4, 5, 6, 7]])
    np.testing.assert_array_equal(concatenated(clips), [np.arange(12)])
