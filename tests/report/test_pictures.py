"""Likeness of pictures, against what scikit-image gives for them."""

import numpy as np
import pytest

from physion.report.pictures import BEST_PSNR, likeness, psnr, ssim


def gradients(size=(24, 32)):
    """Three pictures, and as many drawn ones: the same, a noisy one and a very noisy one."""
    y, x = np.mgrid[: size[0], : size[1]]
    shown = np.stack([np.stack([(4 * x + 3 * y + 10 * c + 40 * t) % 256 for c in range(3)], -1) for t in range(3)])
    noise = np.random.default_rng(0).integers(-30, 31, shown.shape) * np.array([0, 1, 3])[:, None, None, None]
    return shown.astype(np.uint8), np.clip(shown + noise, 0, 255).astype(np.uint8)


def test_as_scikit_image_has_them():
    """scikit-image 0.26: structural_similarity(shown, drawn, channel_axis=-1, data_range=255), peak_signal_noise_ratio."""
    shown, drawn = gradients()
    np.testing.assert_allclose(ssim(shown, drawn), [1, 0.4459202505929914, 0.15418225906846975], atol=1e-12)
    np.testing.assert_allclose(psnr(shown, drawn), [BEST_PSNR, 23.029334688063784, 14.48568694942514], atol=1e-12)


def test_the_least_difference_is_told_from_none():
    shown = np.zeros((1, 128, 128, 3), np.uint8)
    drawn = shown.copy()
    drawn[0, 5, 5, 1] = 1
    assert psnr(shown, shown)[0] == BEST_PSNR > psnr(shown, drawn)[0] > 94


def test_over_videos():
    shown, drawn = gradients()
    found = likeness([(shown, drawn), (shown, shown), (shown, drawn)], 200, 0)
    assert found["ssim"]["by_frame"] == pytest.approx(ssim(shown, drawn) * 2 / 3 + 1 / 3)
    assert found["psnr"]["value"] == pytest.approx(np.mean(found["psnr"]["by_frame"]))
    for measured in found.values():
        assert measured["low"] < measured["value"] < measured["high"]
        assert measured["n"] == 3
        assert len(measured["by_frame"]) == 3
    in_one_color = np.repeat(shown.mean((1, 2), keepdims=True), 24, 1).repeat(32, 2)
    assert likeness([(shown, in_one_color)], 10, 0)["explained"]["value"] == pytest.approx(0)
