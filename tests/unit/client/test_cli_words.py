"""The command line of agentcg: what is wrong with one is said, and --help tells everything."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from agentcgroup.client.cli.__main__ import build_parser
from agentcgroup.client.cli.statuses import MEANINGS, MEANINGS_OF, ExitStatus
from tests.unit.client.conftest import Cli
from tests.unit.client.scripted_daemon import ScriptedDaemon


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("session", "required: COMMAND"),
        ("session create", "required: name"),
        ("session create s --memory", "expected one argument"),
        ("session create s --memory lots", "--memory: 'lots' is no size"),
        ("session create s --agent-memory lots", "--agent-memory: 'lots' is no size"),
        ("session create s --owner-uid -5", "'-5' is no whole number"),
        ("session create s --owner-gid 99999999999", "'99999999999' is more than 4294967295"),
        ("session create s --pids 4294967296", "'4294967296' is more than 4294967295"),
        ("session create s --pids -1", "'-1' is no whole number"),
        ("session create s --pids many", "'many' is no whole number"),
        ("session create s --priority urgent", "invalid choice"),
        ("session create s --label nonsense", "is not KEY=VALUE"),
        ("session create s --label a=1 --label a=2", "given twice"),
        ("session create s --mem 4G", "unrecognized arguments"),
        ("session show s -- x", "nothing can stand behind -- here"),
        ("session show s more", "unrecognized arguments: more"),
        ("session place s 4711x", "'4711x' is no whole number"),
        ("session place s -4", "'-4' is no whole number"),
        ("session place s 4294967295", "there is no process 4294967295"),
        ("session place s 99999999", "there is no process 99999999"),
        ("session run s", "there is no agent to run"),
        ("session run s my-agent", "stands before --"),
        ("session run s --user no-such-user -- true", "there is no user"),
        ("call set c1", "nothing to change"),
        ("call set c1 --timeout soon", "--timeout: 'soon' is no duration"),
        ("call set c1 --memory-max much", "--memory-max: 'much' is no size"),
        ("host drain --deadline soon", "--deadline: 'soon' is no duration"),
        ("session create s --transparent some", "--transparent: 'some' is none of off"),
        ("history --limit 0", "less than 1"),
        ("history --verdict bad", "invalid choice"),
        ("history events --limit 0", "less than 1"),
        ("history suggest", "there is no command"),
        ("nonsense", "invalid choice"),
        ("run -- true", "run is native"),
        ("--json run -- true", "run stands first"),
    ],
)
def test_a_wrong_command_line_is_told_with_no_traceback(
    cli: Cli, outside: ScriptedDaemon, words: str, complaint: str
) -> None:
    status, output, errors = cli(*words.split())
    assert status == (3 if "no process" in complaint else 2)
    assert complaint in errors
    assert "Traceback" not in errors and output == ""
    assert outside.heard == []


@pytest.mark.parametrize(
    ("words", "complaint", "usage"),
    [
        ("session set", "required: name", "agentcg session set"),
        ("call set c1 --weight -3", "'-3' is no whole number", "agentcg call set"),
        ("session create s --pids many", "'many' is no whole number", "agentcg session create"),
        ("session show s -- x", "nothing can stand behind -- here: x", "agentcg session show"),
        ("history export more", "unrecognized arguments: more", "agentcg history export"),
        ("nonsense", "invalid choice: 'nonsense'", "agentcg"),
    ],
)
def test_a_wrong_command_line_is_json_when_json_is_asked_for(
    cli: Cli, outside: ScriptedDaemon, words: str, complaint: str, usage: str
) -> None:
    head, *behind = words.split(" -- ")
    status, output, errors = cli(*head.split(), "--json", *(["--", *behind] if behind else []))
    told = json.loads(errors)
    assert (status, output, told["error"], told["exit_status"]) == (2, "", "InvalidRequest", 2)
    assert complaint in told["cause"]
    assert told["next_step"] == f"See `{usage} --help`"


def test_json_behind_the_dashes_is_the_tools_own(cli: Cli) -> None:
    status, _, errors = cli("nonsense", "--", "--json")
    assert status == 2 and errors.startswith("usage: agentcg ")


def _parsers(parser: Any, path: str = "agentcg") -> Iterator[tuple[str, Any]]:
    yield path, parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name, child in action.choices.items():
                yield from _parsers(child, f"{path} {name}")


def test_the_help_of_every_command_names_its_exit_statuses_and_json() -> None:
    commands = {
        path.removeprefix("agentcg "): parser
        for path, parser in _parsers(build_parser())
        if parser.get_default("run")
    }
    assert len(commands) > 20 and MEANINGS_OF.keys() <= commands.keys()
    assert {*MEANINGS, *(status for each in MEANINGS_OF.values() for status in each)} == {*ExitStatus}
    for path, parser in commands.items():
        text = parser.format_help()
        assert "--json" in text, path
        told = text.partition("Exit status:\n")[2].splitlines()
        own = sorted((MEANINGS | MEANINGS_OF.get(path, {})).items())
        assert told == [f"  {status:>3}  {meaning}" for status, meaning in own], path
