"""`physion doctor`: will it work on this machine?"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from physion.commands import AsJSON, cache_options, chosen_store, print_json
from physion.errors import ConfigError


def doctor(
    store: Annotated[
        str | None,
        typer.Option("--store", "-s", envvar="PHYSION_STORE", help="Store to test: file:///path or s3://bucket/prefix."),
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """Will it work on this machine? Checks GPU, memory, cores, disk, store and clock; exit code 2 if something will not."""
    from physion.doctor import Finding, examine

    findings: list[Finding] = []
    for finding in examine(None if store is None else chosen_store(store), cache_options.folder):
        findings.append(finding)
        if not as_json:
            color = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.state]
            line = f"[{color}]{finding.state:<4}[/]  {finding.name:<8} {escape(finding.text)}"
            Console().print(line, soft_wrap=True, highlight=False)
    if as_json:
        print_json([vars(finding) for finding in findings])
    failed = [finding.name for finding in findings if finding.state == "fail"]
    if failed:
        raise ConfigError(f"will not work as it is: {', '.join(failed)}")
