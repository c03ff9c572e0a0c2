import base64
import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest

from physion.report.html import TOKENS_STILL, UNKNOWN, ReportContext, VideoPanel, render_report
from physion.report.metrics import Interval, evaluate_predictions, paper_protocol
from physion.report.plots import plot_accuracy
from physion.store.artifacts import FileRecord, Manifest

HOSTILE = '<script>alert("x")</script>'
VOID = {"meta", "img", "br", "link"}
NUMBER = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 12}
MP4, PNG = b"not really mp4 \x00\xff", b"not really png"


class Page(HTMLParser):
    """Collects elements and visible text, and checks that every element that opens is closed in its place."""

    def __init__(self, html):
        super().__init__()
        self.open, self.elements, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def words(self):
        return " ".join(self.text.split())


def context(**changes):
    rng = np.random.default_rng(0)
    names, scenarios = [f"v{index}" for index in range(12)], ["Roll", HOSTILE] * 6
    labels, scores = np.arange(12) % 2 == 0, rng.random((2, 12))
    metrics = {
        mode: evaluate_predictions(names, scenarios, labels, scores, [0.4, 0.5], resamples=50)
        for mode in ("observed", "rollout", HOSTILE)
    }
    files = [FileRecord(name="file", size=size, sha256="0" * 64) for size in (1_000_000, 234_567)]
    named = {"stage": HOSTILE, "instance": HOSTILE, "fingerprint": HOSTILE}
    # Unchecked: the page escapes even names that no manifest is read with.
    made = Manifest.model_construct(**named, config={}, inputs={}, files=files, code="", created="", seconds=3725)
    whole = ReportContext(
        headline=HOSTILE,
        simulated=True,
        metrics=metrics,
        comparisons={HOSTILE: Interval(0.05, -0.01, 0.11).as_json() | {"p_value": 0.123}},
        verdicts=[
            {"link": "slots", "measure": "place_agent", "number": NUMBER, "chance": 0.0, "ceiling": 1.0}
            | {"state": "at chance", "verdict": HOSTILE},
            {"link": "dynamics", "state": "not measured", "verdict": HOSTILE},
            {"link": "answer", "measure": "answers_rollout", "number": NUMBER, "chance": 0.5, "ceiling": None}
            | {"state": "above chance", "verdict": "Above chance."},
        ],
        paper_protocol={"rollout": paper_protocol(scores[:, None], labels)},
        plots={HOSTILE: plot_accuracy(metrics, simulated=True)},
        videos=[
            VideoPanel(
                HOSTILE, HOSTILE, True, {"rollout": 0.7, HOSTILE: 0.2}, [(HOSTILE, MP4)], {"rollout": True, HOSTILE: False}
            )
        ],
        stills={HOSTILE: PNG},
        histories={HOSTILE: [{"step": 1, "loss": 2.0}, {"step": 5, "loss": 1.0, "heldout_loss": 1.5}]},
        provenance=[made],
        config_yaml=f"key: {HOSTILE}\n",
    )
    return dataclasses.replace(whole, **changes)


def test_well_formed_deterministic_and_escaped():
    html = render_report(context())
    assert html == render_report(context())
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.elements}
    assert "<script" not in html
    assert page.text.count("<script>") >= 17  # everything hostile is there, as text


def test_loads_nothing():
    html = render_report(context())
    for tag, attributes in Page(html).elements:
        for name in ("src", "href", "xlink:href", "poster", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), f"{tag} {name}={value}"
    assert "@import" not in html
    assert "url(http" not in html
    assert "default-src 'none'" in html


def test_clips_and_stills_are_inside():
    elements = Page(render_report(context())).elements
    video = next(attributes for tag, attributes in elements if tag == "video")
    assert {"autoplay", "loop", "muted", "playsinline"} <= set(video)
    assert video["src"] == "data:video/mp4;base64," + base64.b64encode(MP4).decode()
    image = next(attributes for tag, attributes in elements if tag == "img")
    assert image["src"] == "data:image/png;base64," + base64.b64encode(PNG).decode()


def test_every_link_of_the_page_leads_somewhere():
    elements = Page(render_report(context())).elements
    ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
    links = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert len(links) >= 5
    assert {link[1:] for link in links} <= ids


def test_the_tokens_lead_to_their_picture():
    verdicts = [{"link": "tokens", "state": "not measured", "verdict": "Not measured."}]
    elements = Page(render_report(context(verdicts=verdicts, stills={HOSTILE: PNG, TOKENS_STILL: PNG}))).elements
    assert ("a", {"href": "#tokens"}) in elements
    place = elements.index(("figure", {"class": "still", "id": "tokens"}))
    assert elements[place + 1][1]["alt"] == TOKENS_STILL
    without = Page(render_report(context(verdicts=verdicts))).elements
    assert "#tokens" not in [attributes.get("href") for _, attributes in without]


def test_says_what_the_numbers_are():
    words = Page(render_report(context())).words()
    assert "12 test videos, 6 of them positive" in words
    assert "means over 2 readout seeds" in words
    assert "threshold was chosen on held-out readout videos" in words
    assert "tested once" in words
    assert "50 bootstrap resamples" in words
    assert "fewer than 30 videos" in words
    assert "selected on test" in words
    assert "Not comparable on simulated videos." in words
    assert "includes zero" in words
    assert "1 h 2 min" in words
    assert "1.23 MB" in words


def test_official_videos_are_compared_like_with_like():
    words = Page(render_report(context(simulated=False))).words()
    assert "Not comparable" not in words
    assert "compare them with this run's “selected on test” row" in words


def test_empty_sections_are_left_out():
    empty = {"verdicts": (), "comparisons": {}, "plots": {}, "videos": (), "stills": {}, "provenance": ()}
    page = Page(render_report(context(**empty, paper_protocol={}, histories={}, config_yaml="")))
    headings = {attributes.get("id") for tag, attributes in page.elements if tag == "section"}
    assert headings == {"results", "scenarios", "published"}
    assert "It picked" not in page.words()


def test_it_begins_with_the_verdicts():
    page = Page(render_report(context()))
    assert next(attributes["id"] for tag, attributes in page.elements if tag == "section") == "chain"
    cells = "".join(page.text.split())
    place = "R² of the agent's place in the picture, read from its slot 0.700 [0.600, 0.800] 0.000 1.000"
    for row in (
        f"slots {HOSTILE} {place}",
        f"dynamics {HOSTILE} not measured {3 * UNKNOWN}",
        f"answer Above chance. accuracy of the readout, from the rollout 0.700 [0.600, 0.800] 0.500 {UNKNOWN}",
    ):
        assert "".join(row.split()) in cells


def test_one_class_is_said():
    metrics = evaluate_predictions(["a"], ["Roll"], np.array([True]), np.array([[0.9]]), [0.5], resamples=10)
    page = Page(render_report(context(metrics={"rollout": metrics}, paper_protocol={})))
    assert "one class only" in page.words()


def test_needs_metrics():
    with pytest.raises(ValueError, match="at least one feature mode"):
        render_report(context(metrics={}))
