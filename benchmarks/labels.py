"""Accuracy on the test videos against the number of labelled ones, of a finished study.

    python benchmarks/labels.py STORE PRESET [ROW ...]

Each row of `regress` by its chosen variant, learned again on some of the readout videos: whole families, over all scenarios.
"""

import json
import sys

import numpy as np

import physion
from physion.data.order import spread
from physion.data.split import family
from physion.models.regression import fit
from physion.stages.regress import FITS, POOLINGS, _Source, _stacked

COUNTS = (125, 250, 500, 1000, 2000)
ROWS = ("states-observed", "places-observed", "places-rollout", "places-full", "states-full")


def main():
    study = physion.open(sys.argv[1], preset=sys.argv[2])
    print(f"| labelled videos | {' | '.join(map(str, COUNTS))} |\n|---|{'---|' * len(COUNTS)}")
    for on in sys.argv[3:] or ROWS:
        node = study.graph[f"regress-{on}"]
        source = _Source(on, node.settings["frames"], node.section.stride, node.settings.get("places", 0))
        (learn, of), (ask, asked) = (source.open(study.artifact(node.inputs[subset])) for subset in ("readout", "test"))
        kind, pooling, scope = json.loads(study.artifact(node.name).path(FITS).read_text())["chosen"].split("-")
        features, questions = (POOLINGS[pooling](_stacked(videos, each, ())) for videos, each in ((learn, of), (ask, asked)))
        truth, scenarios = np.array([bool(video.label) for video in ask]), np.array([video.scenario for video in ask])
        pairs = {}
        for number, video in enumerate(learn):
            pairs.setdefault(family(video.name), []).append(number)
        by_scenario = sorted(pairs.values(), key=lambda pair: learn[pair[0]].scenario)
        found = []
        for count in COUNTS:
            chosen = [n for number in spread(len(by_scenario), min(len(by_scenario), count // 2)) for n in by_scenario[number]]
            labels, families = np.array([bool(learn[n].label) for n in chosen]), [family(learn[n].name) for n in chosen]
            of_chosen = np.array([learn[n].scenario for n in chosen])
            said = np.full(len(ask), labels.mean())
            for name in ["all"] if scope == "all" else sorted(set(scenarios.tolist())):
                mine, here = (np.full(len(each), True) if name == "all" else each == name for each in (of_chosen, scenarios))
                rows = np.array(chosen)[mine]
                answer = fit(kind, features[rows], labels[mine], [f for f, m in zip(families, mine, strict=True) if m], 0)
                said[here] = answer(questions[here])
            found.append(f"{100 * ((said > 0.5) == truth).mean():.1f}")
        print(f"| {on} ({kind}, {pooling}, {scope}) | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
