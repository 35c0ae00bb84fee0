"""A run in which everything happened that has to, for tests to spoil."""

from typing import Any

import msgspec

from agentcgroup.client import Verdict
from demo.expect import CALLS_METRIC
from demo.records import AgentEnd, AgentRun, Cost, PastCall, Place, Remains, Run, Step, Transcript
from demo.story import AGENTS, HOST_MEMORY_BYTES, MIB, Agent, StepName

TABLE = "git 3 100 200\nmake 2 50 70"


def step(agent: str, name: StepName, **fields: Any) -> Step:
    """A call that ended well, unless said otherwise."""
    plain: dict[str, Any] = {
        "title": name.replace("-", " "),
        "door": "launcher",
        "command": ("true",),
        "declared": {"memory": "32M", "memory-max": "128M"},
        "decision": "granted",
        "answer": "Granted: 32 MiB reserved.",
        "call_id": f"c-{name}",
        "exit_status": 0,
        "verdict": Verdict.OK,
        "message": "Ended well after 1 s.",
        "duration_ms": 1000,
        "memory_peak_bytes": 10 * MIB,
        "cpu_us": 900_000,
        "pids_peak": 2,
    }
    return Step(agent=agent, name=name, **(plain | fields))


def good_steps() -> dict[str, list[Step]]:
    """Every step of the story."""
    too_little = step(
        "analyst", StepName.LOAD_TOO_LITTLE, verdict=Verdict.MEMORY_LIMIT_CALL, memory_peak_bytes=192 * MIB,
        message="Killed by the kernel.", advice="Declare more, for example --memory 384M --memory-max 384M.",
    )  # fmt: skip
    refused = step(
        "tester", StepName.TESTS_REFUSED, decision="refused", reason="host_memory", call_id="", verdict="", message="",
        answer="Refused: the call needs 320 MiB.", suggestion="Declare --memory 64M or less.", memory_peak_bytes=None,
        cpu_us=None, door="ticket", declared={"memory": "320M"},
    )  # fmt: skip
    builder = [
        StepName.CLONE_LIBRARY, StepName.COMPARE, StepName.BUILD, StepName.CHECK, StepName.REVIEW, StepName.COMMIT,
        StepName.COLLECT, StepName.RELEASE,
    ]  # fmt: skip
    return {
        "builder": [step("builder", name) for name in builder],
        "tester": [
            step("tester", StepName.CLONE_PACKAGE),
            step("tester", StepName.INSTALL),
            step("tester", StepName.SERVE, leftover_processes=1),
            refused,
            step("tester", StepName.TESTS, because_of=StepName.TESTS_REFUSED, declared={"memory": "64M"},
                 output_tail="....\n891 passed, 2 skipped in 30.20s"),
            step("tester", StepName.WAIT, verdict=Verdict.DEADLINE, message="Stopped at its deadline of 4 s."),
            step("tester", StepName.LOOK, because_of=StepName.WAIT),
        ],
        "analyst": [
            step("analyst", StepName.FORK_WITHOUT_END, verdict=Verdict.PIDS_LIMIT, pids_peak=24, leftover_processes=23,
                 declared={"pids": "24"}, message="Ended with exit status 1."),
            step("analyst", StepName.FORK_FEW, because_of=StepName.FORK_WITHOUT_END),
            too_little,
            step("analyst", StepName.LOAD, decision="trimmed", reason="session_memory", door="ticket",
                 declared={"memory": "384M", "memory-max": "4G"}, suggestion="Fit the call to these limits.",
                 memory_peak_bytes=330 * MIB, because_of=StepName.LOAD_TOO_LITTLE),
            step("analyst", StepName.STREAM, memory_peak_bytes=14 * MIB, because_of=StepName.LOAD_TOO_LITTLE),
        ],
    }  # fmt: skip


def past(told: Step, **fields: Any) -> PastCall:
    """What the daemon keeps of a told."""
    plain: dict[str, Any] = {
        "call_id": told.call_id, "session": told.agent, "parent_call_id": "", "verdict": told.verdict,
        "decision": told.decision, "command": told.command, "duration_ms": told.duration_ms,
        "memory_peak_bytes": told.memory_peak_bytes, "cpu_us": told.cpu_us,
        "leftover_processes": told.leftover_processes, "message": told.message, "step": told.name,
    }  # fmt: skip
    return PastCall(**(plain | fields))


def agent_run(agent: Agent, steps: list[Step]) -> AgentRun:
    """An agent that came to its end."""
    findings = {
        "tester": {"suggested_memory": "64M"},
        "analyst": {"advised_memory": "384M", "loaded": TABLE, "streamed": TABLE},
    }
    end = AgentEnd(
        agent=agent.name, memory_peak_bytes=300 * MIB, cpu_us=10_000_000, messages_heard=20, messages_lost=0,
        findings=findings.get(agent.name, {}),
    )  # fmt: skip
    transcript = Transcript(tuple(steps), end)
    return AgentRun(agent.name, agent.priority, agent.task, agent.memory_bytes, 0, transcript)


def good_run() -> Run:
    """All expectations hold."""
    steps = good_steps()
    history = [past(each) for name in steps for each in steps[name] if each.call_id]
    review = next(each for each in steps["builder"] if each.name == StepName.REVIEW)
    for nested in ("review-log", "review-grep"):
        history.append(past(review, call_id=f"c-{nested}", parent_call_id=review.call_id, step=nested))
    return Run(
        started_at="2026-11-21T03:00:00+00:00",
        duration_ms=120_000,
        place=Place(
            "guest", "no memory controller", "7.3.4", "scx", HOST_MEMORY_BYTES, 2000, ("docker: no socket",)
        ),
        agents=tuple(agent_run(agent, steps[agent.name]) for agent in AGENTS),
        history=tuple(history),
        cost=Cost(
            rss_bytes=57 * MIB, memory_peak_bytes=None, cpu_us=4_100_000, wall_ms=135_000, calls=len(history)
        ),
        remains=Remains((), (), ()),
        metrics={
            f'{CALLS_METRIC}{{verdict="ok"}}': len(history) - 3.0,
            f'{CALLS_METRIC}{{verdict="deadline"}}': 3.0,
            "agentcgroup_sessions": 0.0,
        },
        metrics_url="http://127.0.0.1:9464/metrics",
        operator_socket="/run/agentcgroup-demo/operator.sock",
    )


def with_step(run: Run, name: StepName, **fields: Any) -> Run:
    """The same run, but step `name` went otherwise; the history says the same of it."""
    agents = []
    for agent in run.agents:
        steps = tuple(
            msgspec.structs.replace(each, **fields) if each.name == name else each
            for each in agent.transcript.steps
        )
        transcript = msgspec.structs.replace(agent.transcript, steps=steps)
        agents.append(msgspec.structs.replace(agent, transcript=transcript))
    kept = {key: fields[key] for key in fields if key in PastCall.__struct_fields__}
    history = tuple(
        msgspec.structs.replace(call, **kept) if call.step == name else call for call in run.history
    )
    return msgspec.structs.replace(run, agents=tuple(agents), history=history)


def with_end(run: Run, agent: str, **fields: Any) -> Run:
    """The same run, but `agent` wrote something else last."""
    agents = []
    for each in run.agents:
        end = each.transcript.end
        if each.name == agent and end is not None:
            end = msgspec.structs.replace(end, **fields)
        transcript = msgspec.structs.replace(each.transcript, end=end)
        agents.append(msgspec.structs.replace(each, transcript=transcript))
    return msgspec.structs.replace(run, agents=tuple(agents))
