"""`physion runs`: the studies in a store."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.table import Table

from physion.commands import AsJSON, StoreURI, chosen_store, print_json, print_table
from physion.errors import ConfigError

SHOWN = 4  # changed options shown per study; the others are only counted


def runs(store: StoreURI, as_json: AsJSON = False) -> None:
    """List the studies in a store: the nearest preset, what was changed, when, and the accuracies or the progress.

    A study is listed once it has a report, and while one of its stages is running.
    """
    from physion.pipeline.studies import studies

    target = chosen_store(store)
    found = studies(target)
    rows: list[dict[str, Any]] = [
        {
            "preset": study.preset,
            "changed": study.changed,
            "fingerprint": study.report and study.report.fingerprint,
            "created": study.report and study.report.created,
            "commit": study.report and study.report.program.commit,
            "done": study.done,
            "total": study.total,
            "metrics": study.report.metrics if study.report else {},
        }
        for study in found
    ]
    if as_json:
        print_json(rows)
        return
    if not rows:
        raise ConfigError(f"there is no study in {target.uri}: check the name of the store; physion store ls lists artifacts")
    table = Table(title=escape(f"store {target.uri}"), title_justify="left", box=None, pad_edge=False)
    for column in ("preset", "changed", "report", "created", "commit", "result"):
        table.add_column(column)
    for row, study in zip(rows, found, strict=True):
        changed = [f"{key}={value}" for key, value in row["changed"].items()]
        more = [f"and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        result = row["metrics"].get("headline", "done") if row["fingerprint"] else f"{row['done']} of {row['total']} stages"
        created = (row["created"] or "")[:16].replace("T", " ")
        changes, report = "\n".join(changed[:SHOWN] + more) or "-", (row["fingerprint"] or "")[:12]
        commit = str(study.report.program) if study.report else ""
        cells = (row["preset"], changes, report, created, commit or "-", result)
        table.add_row(*(escape(str(cell)) for cell in cells))
    print_table(table)
