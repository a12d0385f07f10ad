"""`nertool doctor`: whether all is there that the commands may need."""

from typing import TYPE_CHECKING

import typer

from nertool.commands.options import Config, Json, Set, command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nertool.health import Finding


@command
def doctor(json: Json = False, config: Config = None, assignments: Set = None) -> None:
    """Look at what nertool needs: versions, processors, memory, disks, settings, servers; and say what to do.

    Asks the Hugging Face hub, Label Studio and the LLM's endpoint whether they are there, which costs nothing and takes
    a few seconds. Keys and tokens are never shown. The exit status is 2 where there is a problem.

    nertool doctor
    """
    from dataclasses import asdict

    from nertool.console import print_json
    from nertool.health import examine

    findings = examine(config, assignments)
    problems = sum(finding.state == "problem" for finding in findings)
    if json:
        print_json({"problems": problems, "findings": [asdict(finding) for finding in findings]})
    else:
        show_findings(findings, problems)
    if problems:
        raise typer.Exit(2)


def show_findings(findings: "Sequence[Finding]", problems: int) -> None:
    """Prints one line for each finding, and what to do below it."""
    from nertool.console import say, say_beside

    styles = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for finding in findings:
        say_beside(f"{finding.state:<7}", styles[finding.state], f"{finding.subject}: {finding.text}")
        if finding.hint:
            say(f"        → {finding.hint}")
    say("no problems" if not problems else f"{problems} {'problem' if problems == 1 else 'problems'}")
