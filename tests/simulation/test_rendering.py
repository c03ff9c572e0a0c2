"""The pieces of the renderer against plain twins."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from physion.simulation import SCENARIOS, make_trajectory, sheet
from physion.simulation.cloth import ShadowMap, rasterise, vertex_normals
from physion.simulation.draws import Draws
from physion.simulation.materials import PALETTE, RED, YELLOW, Material, Pattern, draw_room
from physion.simulation.physics import FRAMES
from physion.simulation.renderer import Renderer

SQUARE = np.array([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 0.0], [-1.0, 1.0, 0.0]])
TWO_TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])


def test_rasteriser_finds_the_nearest_triangle_of_each_pixel():
    """Against one pixel and one triangle at a time."""
    generator = np.random.default_rng(0)
    corners, depths, side = generator.uniform(-4, 20, (12, 3, 2)), generator.uniform(1, 2, (12, 3)), 16
    fragments = rasterise(corners, depths, side)
    found = dict(zip(fragments.pixels.tolist(), fragments.depths.tolist(), strict=True))
    expected = {}
    for pixel in range(side * side):
        point = np.array([pixel % side + 0.5, pixel // side + 0.5, 1.0])
        hits = []
        for triangle in range(len(corners)):
            weights = np.linalg.solve(np.vstack([corners[triangle].T, np.ones(3)]), point)
            if weights.min() >= 0:
                hits.append(weights @ depths[triangle])
        if hits:
            expected[pixel] = min(hits)
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx([expected[pixel] for pixel in found], abs=1e-3)


def test_a_flat_cloth_has_one_normal_and_no_gap():
    np.testing.assert_allclose(vertex_normals(SQUARE, TWO_TRIANGLES), np.tile([0.0, 0.0, 1.0], (4, 1)), atol=1e-9)
    picture = (SQUARE[:, :2] + 1) * 8
    fragments = rasterise(picture[TWO_TRIANGLES], np.ones((2, 3)), 16)
    assert len(fragments.pixels) == 16 * 16


def test_shadow_lies_behind_the_cloth_as_seen_from_the_lamp():
    lamp = np.array([0.5, 0.3, 4.0])
    shadow = ShadowMap(SQUARE + np.array([0, 0, 1]), TWO_TRIANGLES, lamp, 64)
    below, beside, above = [0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 2.0]
    np.testing.assert_array_equal(shadow.shades(np.array([below, beside, above])), [True, False, False])


@pytest.mark.parametrize("scenario", ["Contain", "Drape", "Link"])
def test_repeating_unmoved_frames_changes_nothing_visible(scenario):
    """The fast path, which repeats frames and treats what rests as background, against every frame on its own."""
    renderer = Renderer(make_trajectory(scenario, 1, 0), 32, 1)
    frames = renderer.frames()
    for number in (0, 20, 44, 60, 100, FRAMES - 1):
        difference = np.abs(frames[number].astype(int) - renderer.frame(number).astype(int))
        assert difference.mean() < 0.5


def test_no_distractor_looks_like_the_agent_or_the_patient():
    for color in PALETTE:
        for reserved in (RED, YELLOW):
            assert np.linalg.norm(np.subtract(color, reserved)) > 0.5


def test_rooms_are_muted():
    for seed in range(20):
        room = draw_room(Draws(seed), 1.0)
        for material in (room.floor, room.wall):
            assert np.ptp(material.color) < 0.2
            assert material.contrast <= 0.16


@pytest.mark.parametrize("pattern", list(Pattern))
def test_patterns_darken_by_at_most_their_contrast(pattern):
    points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
    albedo = Material(YELLOW, pattern, 7.0, 0.25).albedo(points)
    assert albedo.shape == (500, 3)
    brightness = albedo[:, 0] / YELLOW[0]
    assert brightness.max() <= 1 + 1e-6
    assert brightness.min() >= 0.75 - 1e-6
    assert (np.ptp(brightness) > 0.1) == (pattern is not Pattern.PLAIN)


def test_contact_sheet_has_a_row_a_scenario(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "SCENARIOS", SCENARIOS[:2])
    sheet.write_contact_sheet(tmp_path / "sheet.png", seed=0, size=32)
    image = Image.open(tmp_path / "sheet.png")
    assert image.width > 6 * 32
    assert 2 * 32 < image.height < 4 * 32


@pytest.mark.parametrize("scenario", ["Collide", "Contain", "Link", "Support"])
def test_culling_rays_changes_no_pixel(scenario):
    """Against the plain twin, which casts every ray at every moving body."""
    trajectory = make_trajectory(scenario, 1, 0)
    culled, plain = (Renderer(trajectory, 32, 2) for _ in range(2))
    plain._radii = np.full_like(plain._radii, 100.0)
    for number in (0, 44, 60, FRAMES - 1):
        np.testing.assert_array_equal(culled.frame(number), plain.frame(number))
