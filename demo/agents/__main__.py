"""An agent's process: `python -m demo.agents NAME ...`, started by `agentcg session run`; status 0: it came to its end."""

import argparse
import os
import sys
from pathlib import Path

from agentcgroup.client import Client
from demo.agents import analyst, builder, tester
from demo.harness import Harness, Script, Site
from demo.meeting import Meeting
from demo.transcript import Writer

SCRIPTS: dict[str, Script] = {"builder": builder.script, "tester": tester.script, "analyst": analyst.script}


def main() -> int:
    """Plays one script."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.agents", description="Play one agent of the main job."
    )
    parser.add_argument("name", choices=sorted(SCRIPTS))
    for option in ("--input", "--workspace", "--meeting"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--python", required=True, help="interpreter for the agent's tools")
    arguments = parser.parse_args()
    # Set by `agentcg session run`; the SDK finds the session by itself.
    site = Site(arguments.input, arguments.workspace, arguments.python, os.environ["AGENTCGROUP_LAUNCHER"])
    meeting = Meeting(arguments.meeting)
    try:
        with Client() as client:
            writer = Writer(site.workspace / "transcript.jsonl")
            harness = Harness(arguments.name, site, meeting, writer, client)
            SCRIPTS[arguments.name](harness)
            harness.end()
    finally:
        meeting.leave(arguments.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
