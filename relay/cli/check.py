"""relay check"""

from __future__ import annotations

from pathlib import Path

import click

from relay.cli.settings import config_option, load


@click.command()
@click.option("--json", "wants_json", is_flag=True, help="As JSON.")
@config_option
def check(config_file: Path, wants_json: bool) -> None:
    """Test DNS, TLS, next hop, webhooks, disk and clock; say what to do about what is wrong.

    Nothing is changed and no mail is sent. Exit code 1 when anything failed; warnings alone are 0.
    """
    import asyncio
    from dataclasses import asdict

    from relay import check as checks
    from relay.cli import output

    findings = asyncio.run(checks.run(load(config_file)))
    if wants_json:
        output.as_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            hint = f" -> {finding.hint}" if finding.hint else ""
            line = f"{finding.level.upper():<4}  {finding.what:<{width}}  {finding.text}{hint}"
            click.echo(output.printable(line))
    if any(finding.level == checks.FAIL for finding in findings):
        click.get_current_context().exit(1)
