"""The commands of agentcg against real gRPC: what they ask, what people read, what machines read, how they end."""

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from agentcgroup.client import convert
from agentcgroup.client.cli.output import as_json
from agentcgroup.proto.v1 import agent_pb2 as agent, operator_pb2 as operator, types_pb2 as pb
from tests.unit.client.conftest import Cli
from tests.unit.client.messages import filled
from tests.unit.client.scripted_daemon import ScriptedDaemon

SESSION = filled(pb.Session)
CALL = filled(pb.Call)
REPORT = filled(pb.Report)


# Per command of an operator: its words, the method and the request that must follow, the response, what --json prints.
Row = tuple[str, str, Message, Message, Any]
LIMITS = "--memory 2G --memory-max 3G --cpu 1.5 --weight 200 --pids 64 --timeout 10m"
LIMITS_INTENT = pb.Intent(
    memory_bytes=2**31,
    memory_max_bytes=3 * 2**30,
    cpu_milli=1500,
    cpu_weight=200,
    pids_max=64,
    deadline_ms=600_000,
)
BUDGET = "--memory 4G --agent-memory 512M --swap 0 --cpu 2 --weight 200 --pids 500 --calls 9"
BUDGET_MESSAGE = pb.Budget(
    memory_max_bytes=2**32, agent_memory_bytes=2**29, swap_max_bytes=0, cpu_milli=2000, cpu_weight=200, pids_max=500,
    calls_max=9,
)  # fmt: skip
SESSION_JSON = as_json(convert.session(SESSION))
CALL_JSON = as_json(convert.call(CALL))
ANSWER = pb.Answer(
    decision=pb.DECISION_TRIMMED, message="less", suggestion="be content", notices=["a notice"]
)
ROWS: list[Row] = [
    (
        f"session create s {BUDGET} --priority high --label a=b --label c=d=e --owner-uid 7 --owner-gid 8 --ends-with-agent",
        "CreateSession",
        operator.CreateSessionRequest(
            name="s", budget=BUDGET_MESSAGE, priority=pb.PRIORITY_HIGH, labels={"a": "b", "c": "d=e"}, owner_uid=7,
            owner_gid=8, ends_with_agent=True,
        ),
        operator.CreateSessionResponse(session=SESSION), SESSION_JSON,
    ),
    (
        "session list", "ListSessions", operator.ListSessionsRequest(), operator.ListSessionsResponse(sessions=[SESSION]),
        [SESSION_JSON],
    ),
    (
        "session show s", "GetSession", operator.GetSessionRequest(name="s"),
        operator.GetSessionResponse(session=SESSION), SESSION_JSON,
    ),
    (
        f"session set s {BUDGET} --priority low", "UpdateSession",
        operator.UpdateSessionRequest(name="s", budget=BUDGET_MESSAGE, priority=pb.PRIORITY_LOW),
        operator.UpdateSessionResponse(session=SESSION), SESSION_JSON,
    ),
    (
        "session freeze s --agent --reason why", "FreezeSession",
        operator.FreezeSessionRequest(name="s", reason="why", include_agent=True),
        operator.FreezeSessionResponse(session=SESSION), SESSION_JSON,
    ),
    (
        "session thaw s", "ThawSession", operator.ThawSessionRequest(name="s"),
        operator.ThawSessionResponse(session=SESSION), SESSION_JSON,
    ),
    (
        "session kill s --reason why", "KillSession", operator.KillSessionRequest(name="s", reason="why"),
        operator.KillSessionResponse(calls_killed=2), {"session": "s", "calls_killed": 2},
    ),
    (
        "session remove s --reason why", "RemoveSession", operator.RemoveSessionRequest(name="s", reason="why"),
        operator.RemoveSessionResponse(), {"session": "s", "removed": True},
    ),
    (
        "call list --session s", "ListCalls", operator.ListCallsRequest(session="s"),
        operator.ListCallsResponse(calls=[CALL]), [CALL_JSON],
    ),
    ("call tree --all", "ListCalls", operator.ListCallsRequest(), operator.ListCallsResponse(calls=[CALL]), [CALL_JSON]),
    (
        "call show c1", "GetCall", operator.OperatorServiceGetCallRequest(call_id="c1"),
        operator.OperatorServiceGetCallResponse(call=CALL), CALL_JSON,
    ),
    (
        f"call set c1 {LIMITS}", "UpdateCall", operator.UpdateCallRequest(call_id="c1", intent=LIMITS_INTENT),
        operator.UpdateCallResponse(answer=ANSWER), as_json(convert.answer(ANSWER)),
    ),
    (
        "call freeze c1 --reason why", "FreezeCall", operator.FreezeCallRequest(call_id="c1", reason="why"),
        operator.FreezeCallResponse(call=CALL), CALL_JSON,
    ),
    ("call thaw c1", "ThawCall", operator.ThawCallRequest(call_id="c1"), operator.ThawCallResponse(call=CALL), CALL_JSON),
    (
        "call kill c1 --reason why", "KillCall", operator.KillCallRequest(call_id="c1", reason="why"),
        operator.KillCallResponse(report=REPORT), as_json(convert.report(REPORT)),
    ),
    (
        "history --session s --verdict deadline --limit 7", "ListHistory",
        operator.ListHistoryRequest(session="s", verdict=pb.VERDICT_DEADLINE, page_size=7),
        operator.ListHistoryResponse(entries=[filled(operator.HistoryEntry)]),
        [as_json(convert.history_entry(filled(operator.HistoryEntry)))],
    ),
    (
        "host drain --reason why --deadline 10m", "DrainHost",
        operator.DrainHostRequest(reason="why", deadline_ms=600_000), operator.DrainHostResponse(calls_live=2),
        {"calls_live": 2},
    ),
    (
        "host resume", "ResumeHost", operator.ResumeHostRequest(), operator.ResumeHostResponse(was_draining=True),
        {"was_draining": True},
    ),
    (
        "host reload", "ReloadConfiguration", operator.ReloadConfigurationRequest(),
        operator.ReloadConfigurationResponse(changes=[filled(operator.ConfigurationChange)]),
        [as_json(convert.configuration_change(filled(operator.ConfigurationChange)))],
    ),
    (
        "history events --session s --call c1 --limit 7", "ListEvents",
        operator.ListEventsRequest(session="s", call_id="c1", page_size=7),
        operator.ListEventsResponse(events=[filled(pb.Event)]), [as_json(convert.event(filled(pb.Event)))],
    ),
    (
        "history suggest --project p pytest tests", "GetSuggestion",
        operator.OperatorServiceGetSuggestionRequest(command=["pytest", "tests"], project="p"),
        operator.OperatorServiceGetSuggestionResponse(suggestion=filled(pb.Suggestion)),
        as_json(convert.suggestion(filled(pb.Suggestion))),
    ),
    (
        "explain c1", "ExplainCall", operator.OperatorServiceExplainCallRequest(call_id="c1"),
        operator.OperatorServiceExplainCallResponse(story=filled(pb.Story)), as_json(convert.story(filled(pb.Story))),
    ),
    (
        "check", "GetHost", operator.GetHostRequest(), filled(operator.GetHostResponse),
        {"reachable": True} | as_json(convert.host(filled(operator.GetHostResponse))),
    ),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(row[0].split()[:2]) for row in ROWS])
def test_a_command_asks_what_its_words_say_and_prints_what_it_hears(
    cli: Cli, outside: ScriptedDaemon, row: Row
) -> None:
    words, method, request, response, printed = row
    outside.answers[method] = response
    status, output, errors = cli(*words.split(), "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output) == printed
    assert outside.requests(method) == [request]
    status, for_people, errors = cli(*words.split())
    assert (status, errors) == (0, "")
    assert for_people.strip() and not for_people.startswith(("{", "["))


def test_json_has_exactly_the_field_names_of_the_api(cli: Cli, outside: ScriptedDaemon) -> None:
    outside.answers["ListCalls"] = operator.ListCallsResponse(calls=[CALL])
    _, output, _ = cli("call", "list", "--json")
    (call,) = json.loads(output)
    assert set(call) == {field.name for field in pb.Call.DESCRIPTOR.fields}
    assert set(call["limits"]) == {field.name for field in pb.Limits.DESCRIPTOR.fields}
    assert set(call["report"]["usage"]) == {field.name for field in pb.Usage.DESCRIPTOR.fields}
    assert call["started_at"].endswith("Z") and call["state"] == convert.call(CALL).state


def test_what_is_unknown_is_null_for_machines_and_a_dash_for_people(
    cli: Cli, outside: ScriptedDaemon
) -> None:
    bare = pb.Call(id="c1", session="s", state=pb.CALL_STATE_DECLARED)
    outside.answers["ListCalls"] = operator.ListCallsResponse(calls=[bare])
    assert json.loads(cli("call", "list", "--json")[1])[0]["usage"]["memory_peak_bytes"] is None
    header, row = cli("call", "list")[1].splitlines()
    assert header.split()[:3] == ["CALL", "SESSION", "STATE"]
    assert row.split() == ["c1", "s", "declared", *["-"] * 8]


def test_a_terminal_gets_a_table_and_no_markup_of_an_agents(
    cli: Cli, outside: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = pb.Call(
        id="c1",
        session="s",
        state=pb.CALL_STATE_RUNNING,
        intent=pb.Intent(command=["[red]x[/red]", "\x1b[31m"]),
    )
    outside.answers["ListCalls"] = operator.ListCallsResponse(calls=[call])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, output, _ = cli("call", "list")
    assert "[red]x[/red] ?[31m" in output
    assert "\u2500" in output


def test_an_empty_list_says_so_and_is_an_empty_list(cli: Cli, outside: ScriptedDaemon) -> None:
    outside.answers |= {
        "ListSessions": operator.ListSessionsResponse(),
        "ListCalls": operator.ListCallsResponse(),
        "ListHistory": operator.ListHistoryResponse(),
    }
    for words in (("session", "list"), ("call", "list"), ("call", "tree"), ("history",)):
        status, output, _ = cli(*words)
        assert status == 0 and output.startswith("No "), words
        assert cli(*words, "--json")[1] == "[]\n", words


def test_a_tree_shows_each_call_below_its_parent_and_hides_no_orphan(
    cli: Cli, outside: ScriptedDaemon
) -> None:
    def call(name: str, parent: str = "") -> pb.Call:
        return pb.Call(id=name, session="s", state=pb.CALL_STATE_RUNNING, parent_call_id=parent)

    calls = [
        call("a"),
        call("b"),
        call("a1", "a"),
        call("orphan", "gone"),
        call("a2", "a"),
        call("a1x", "a1"),
    ]
    outside.answers["ListCalls"] = operator.ListCallsResponse(calls=calls)
    lines = cli("call", "tree")[1].splitlines()[1:]
    assert [line[: line.index("s ")].rstrip() for line in lines] == [
        "a",
        "  a1",
        "    a1x",
        "  a2",
        "b",
        "orphan",
    ]


def test_inside_a_session_its_own_calls_are_meant(cli: Cli, inside: ScriptedDaemon) -> None:
    inside.answers |= {
        "GetCallTree": agent.GetCallTreeResponse(calls=[CALL]),
        "GetCall": agent.GetCallResponse(call=CALL),
        "AdjustCall": agent.AdjustCallResponse(answer=ANSWER),
        "GetLimits": filled(agent.GetLimitsResponse),
    }
    assert json.loads(cli("call", "list", "--json")[1]) == [CALL_JSON]
    assert json.loads(cli("call", "tree", "--json")[1]) == [CALL_JSON]
    assert json.loads(cli("call", "show", "c1", "--json")[1]) == CALL_JSON
    assert cli("call", "set", "c1", "--memory", "2G")[:2] == (0, "less\nbe content\na notice\n")
    assert inside.requests("AdjustCall")[0].intent == pb.Intent(memory_bytes=2**31)
    limits = json.loads(cli("limits", "--json")[1])
    assert limits == as_json(convert.session_limits(filled(agent.GetLimitsResponse)))
    assert "a call inside" in cli("limits")[1]


def test_an_agent_kills_a_call_of_its_own_without_giving_a_reason(cli: Cli, inside: ScriptedDaemon) -> None:
    inside.answers["FinishCall"] = agent.FinishCallResponse(report=REPORT)
    assert json.loads(cli("call", "kill", "c1", "--json")[1]) == as_json(convert.report(REPORT))
    assert inside.requests("FinishCall") == [agent.FinishCallRequest(call_id="c1")]
    status, _, errors = cli("call", "kill", "c1", "--reason", "why")
    assert status == 2 and "--reason is what an operator tells the agent" in errors


def test_a_call_is_shown_with_its_rung_and_what_would_be_granted(cli: Cli, outside: ScriptedDaemon) -> None:
    call = pb.Call(id="c1", session="s", state=pb.CALL_STATE_FROZEN)
    outside.answers["GetCall"] = operator.OperatorServiceGetCallResponse(call=call)
    assert "ladder" not in cli("call", "show", "c1")[1]
    call.ladder.rung = pb.RUNG_FROZEN
    call.ladder.memory_to_ask_bytes = 3 << 30
    call.ladder.deadline_at.FromSeconds(1_800_000_000)
    outside.answers["GetCall"] = operator.OperatorServiceGetCallResponse(call=call)
    _, shown, _ = cli("call", "show", "c1")
    (line,) = [line for line in shown.splitlines() if line.startswith("ladder")]
    assert "frozen until 2027-01-1" in line and "3 GiB would be granted now" in line


def test_a_thaw_that_leaves_a_call_frozen_says_so(cli: Cli, outside: ScriptedDaemon) -> None:
    call = pb.Call(id="c1", session="s", state=pb.CALL_STATE_FROZEN)
    outside.answers["ThawCall"] = operator.ThawCallResponse(call=call)
    status, _, told = cli("call", "thaw", "c1")
    assert status == 0 and "stays frozen" in told and "agentcg explain c1" in told
    assert cli("call", "thaw", "c1", "--json")[2] == ""


def test_a_change_of_nothing_is_said_and_choices_are_words(cli: Cli, outside: ScriptedDaemon) -> None:
    status, _, errors = cli("session", "set", "s")
    assert status == 2 and "nothing to change" in errors and not outside.requests("UpdateSession")
    status, _, errors = cli("session", "set", "s", "--priority", "urgent")
    assert status == 2 and "<Priority" not in errors and "high" in errors


def test_the_operators_view_is_asked_for_by_name_inside_a_session_too(
    cli: Cli, inside: ScriptedDaemon, operator_daemon: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTCGROUP_OPERATOR_SOCKET", str(operator_daemon.socket))
    operator_daemon.answers["ListCalls"] = operator.ListCallsResponse(calls=[CALL])
    assert cli("call", "list", "--all")[0] == 0
    assert cli("call", "list", "--session", "s")[0] == 0
    assert [each.session for each in operator_daemon.requests("ListCalls")] == ["", "s"]
    status, _, errors = cli("call", "list", "--all", "--session-dir", str(inside.socket.parent))
    assert status == 2 and "asks as an agent" in errors


def test_watching_prints_each_message_as_a_line(cli: Cli, inside: ScriptedDaemon) -> None:
    said = [
        pb.Feedback(sequence=1, session="s", kind=pb.FEEDBACK_KIND_STARTED, call_id="c1", message="Started 'x'."),
        pb.Feedback(sequence=5, session="s", kind=pb.FEEDBACK_KIND_ENDED, call_id="c1", message="Killed.",
                    advice="Use less.", lost=3),
    ]  # fmt: skip
    inside.answers["WatchFeedback"] = [agent.WatchFeedbackResponse(feedback=each) for each in said]
    status, output, _ = cli("watch", "--call", "c1")
    assert status == 0
    assert output.splitlines() == [
        "-  s  c1  started  Started 'x'.", "3 messages were lost: this reader was too slow", "-  s  c1  ended  Killed.",
        "          Use less.",
    ]  # fmt: skip
    assert inside.requests("WatchFeedback")[0].call_id == "c1"
    lines = [json.loads(line) for line in cli("watch", "--json")[1].splitlines()]
    assert lines == [as_json(convert.feedback(each)) for each in said]


def test_an_operator_watches_one_session_or_all(cli: Cli, outside: ScriptedDaemon) -> None:
    said = [pb.Feedback(session="s", call_id=each, message=f"of {each}") for each in ("c1", "c2")]
    outside.answers["WatchEvents"] = [operator.WatchEventsResponse(event=each) for each in said]
    assert len(cli("watch", "--session", "s")[1].splitlines()) == 2
    assert "of c2" in cli("watch", "--call", "c2")[1] and "of c1" not in cli("watch", "--call", "c2")[1]
    assert [each.session for each in outside.requests("WatchEvents")] == ["s", "", ""]


def test_a_refused_intent_is_shown_with_what_it_asked_for(cli: Cli, outside: ScriptedDaemon) -> None:
    event = pb.Event(session="s", action="refused", actor="policy", reason="no room")
    event.numbers.update(asked_memory_bytes=5 << 30, session_reserved_bytes=1 << 30)
    event.words.update(command="pytest -q", refused_for="session_memory")
    outside.answers["ListEvents"] = operator.ListEventsResponse(events=[event])
    header, row = cli("history", "events", "--numbers")[1].splitlines()
    assert header.split() == ["AT", "SESSION", "CALL", "ACTION", "BY", "WHY", "FROM"]
    assert row.endswith(
        "no room  asked memory 5 GiB; command pytest -q; refused for session_memory; session reserved 1 GiB"
    )
    assert cli("history", "events")[1].rstrip().endswith("no room")


def test_a_session_shows_what_became_of_the_commands_at_its_transparent_door(
    cli: Cli, outside: ScriptedDaemon
) -> None:
    session = filled(pb.Session)
    session.transparent_placed, session.transparent_missed, session.transparent_left = 7, 3, 2
    session.transparent.CopyFrom(pb.TransparentRule(scope=pb.TRANSPARENT_SCOPE_ALL))
    outside.answers["GetSession"] = operator.GetSessionResponse(session=session)
    assert "all, 7 placed, 3 too short, 2 left without a call\n" in cli("session", "show", "s")[1]


def test_a_refused_change_exits_with_120(cli: Cli, outside: ScriptedDaemon) -> None:
    answer = pb.Answer(decision=pb.DECISION_REFUSED, message="no room", suggestion="ask for 1 GiB")
    outside.answers["UpdateCall"] = operator.UpdateCallResponse(answer=answer)
    assert cli("call", "set", "c1", "--memory", "9G")[:2] == (120, "no room\nask for 1 GiB\n")


@pytest.mark.parametrize(
    ("code", "reason", "expected"),
    [
        (code_pb2.INVALID_ARGUMENT, "INVALID", 2),
        (code_pb2.NOT_FOUND, "NOT_FOUND", 3),
        (code_pb2.ALREADY_EXISTS, "EXISTS", 4),
        (code_pb2.FAILED_PRECONDITION, "STATE", 5),
        (code_pb2.PERMISSION_DENIED, "DENIED", 6),
        (code_pb2.RESOURCE_EXHAUSTED, "EXHAUSTED", 7),
        (code_pb2.FAILED_PRECONDITION, "HOST", 8),
        (code_pb2.INTERNAL, "INTERNAL", 125),
    ],
)
def test_every_kind_of_failure_has_its_exit_status_and_says_what_next(
    cli: Cli, outside: ScriptedDaemon, code: int, reason: str, expected: int
) -> None:
    info = error_details_pb2.ErrorInfo(reason=reason, metadata={"next_step": "Do that", "field": "name"})
    failure = status_pb2.Status(code=code, message="It happened. Do that")
    failure.details.add().Pack(info)
    outside.answers["GetSession"] = failure
    assert cli("session", "show", "s") == (expected, "", "agentcg: It happened\nagentcg: Do that\n")
    status, output, errors = cli("session", "show", "s", "--json")
    told = json.loads(errors)
    assert (status, output) == (expected, "")
    assert {key: told[key] for key in ("cause", "next_step", "field", "exit_status")} == {
        "cause": "It happened", "next_step": "Do that", "field": "name", "exit_status": expected,
    }  # fmt: skip


def test_without_a_daemon_check_says_so_tells_what_it_can_and_fails(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGENTCGROUP_OPERATOR_SOCKET", str(tmp_path / "none.sock"))
    status, output, _ = cli("check")
    assert status == 121
    assert "there is no socket" in output and "agentcgroupd --check-host" in output
    status, output, _ = cli("check", "--json")
    assert status == 121
    assert json.loads(output)["reachable"] is False


def test_check_fails_when_nothing_is_enforced_and_says_what_that_costs(
    cli: Cli, outside: ScriptedDaemon
) -> None:
    missing = operator.Capability(
        name="memory",
        available=False,
        tier="cgroup",
        detail="on cgroup v1",
        cost="no limit holds",
        remedy="boot with v2",
    )
    there = operator.Capability(name="cgroup_kill", available=True, tier="cgroup", detail="works")
    outside.answers["GetHost"] = operator.GetHostResponse(tier="none", capabilities=[missing, there])
    status, output, _ = cli("check")
    assert status == 1
    lines = [line.strip() for line in output.splitlines()]
    assert "costs: no limit holds" in lines and "remedy: boot with v2" in lines
    assert output.index("cgroup_kill") < output.index("NO ")
