"""What STEVE's training has that is not in the paper."""

import numpy as np
import pytest

from physion.data.shards import Shards
from physion.pipeline.why import artifacts_of
from physion.stages.train_steve import worth
from physion.store.artifacts import Artifact
from physion.store.local import LocalStore


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_what_a_token_is_worth(finished, balance):
    store = LocalStore(finished)
    (manifest,) = artifacts_of(store, "tokenize")
    tokens = Shards(Artifact(store, manifest))
    told = np.concatenate([tokens.read(video.name, "tokens").ravel() for video in tokens.select(heldout=False)])
    codes = int(told.max()) + 2  # the last one is in no frame
    found, counts = worth(tokens, codes, balance).double().numpy(), np.bincount(told, minlength=codes)
    assert (found * counts).sum() == pytest.approx(counts.sum(), rel=1e-5)
    used = counts > 0
    np.testing.assert_allclose(found[used] * counts[used] ** balance, found[used][0] * counts[used][0] ** balance, rtol=1e-5)
    assert used.sum() > 1
    assert not found[~used].any()
