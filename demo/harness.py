"""The runtime of a scripted agent: makes tool calls by every door there is, reads what it is told, writes it all down."""

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, cast

import msgspec

from agentcgroup.client import Answer, Client, Report
from agentcgroup.client.arguments import IntentArguments
from demo.feedback import Ear
from demo.meeting import Meeting
from demo.records import AgentEnd, Step
from demo.story import StepName
from demo.transcript import Writer

TAIL_LINES: Final = 12


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool call an agent wants: `limits` are options of `agentcg run` without their dashes."""

    name: StepName
    title: str
    command: Sequence[str]
    limits: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    because_of: str = ""

    def retried(
        self, because: Step, name: StepName, title: str, *, command: Sequence[str] = (), **limits: str
    ) -> "Tool":
        """The same, changed because of what was said to `because`; `limits` with underscores for dashes."""
        changed = {key.replace("_", "-"): value for key, value in limits.items()}
        return replace(
            self,
            name=name,
            title=title,
            command=command or self.command,
            limits=self.limits | changed,
            because_of=because.name,
        )


@dataclass(frozen=True, slots=True)
class Site:
    """Where an agent works: what it is given, its own directory, the interpreter its tools use."""

    input: Path
    workspace: Path
    python: str
    launcher: str

    def script(self, name: str) -> str:
        """The path of one of the programs in demo/tools."""
        return str(Path(__file__).resolve().parent / "tools" / name)


class Harness:
    """One agent. Every method that makes a call returns its Step, which is in the transcript by then."""

    def __init__(self, agent: str, site: Site, meeting: Meeting, writer: Writer, client: Client) -> None:
        self.agent = agent
        self.site = site
        self.meeting = meeting
        self.findings: dict[str, str] = {}
        self._writer = writer
        self._client = client
        self._ear = Ear(client)
        self._ear.wait_ready()

    # ---- the doors

    def launch(self, tool: Tool) -> Step:
        """By the launcher alone: `agentcg run OPTIONS -- COMMAND`."""
        return self._write(self._through_launcher(tool, "launcher", _as_options(tool.limits)))

    def declare(self, tool: Tool) -> Answer:
        """Asks over gRPC; what is refused is a step of its own."""
        answer = self._client.declare(**_intent(tool))
        if not answer.call_id:
            self._write(_with_answer(self._blank(tool, "ticket"), answer))
        return answer

    def launch_declared(self, tool: Tool, answer: Answer) -> Step:
        """Begins a call that `declare` was granted, with a ticket."""
        ticket = self._client.ticket(answer.call_id)
        step = self._through_launcher(tool, "ticket", ["--ticket", ticket])
        return self._write(_with_answer(step, answer))

    def run_in_scope(self, tool: Tool) -> Step:
        """By the SDK's context manager."""
        log = self._log(tool)
        with log.open("wb") as output, self._client.call(**_intent(tool)) as call:
            done = call.run(tool.command, cwd=tool.cwd, env=self._environment(), stdin=subprocess.DEVNULL,
                            stdout=output, stderr=output)  # fmt: skip
        step = _with_answer(self._blank(tool, "sdk"), call.answer)
        self._ear.report_of(call.id)
        return self._write(_with_report(step, call.report, done.returncode, _tail(log)))

    def place(self, tool: Tool) -> Step:
        """Starts the tool held back, moves it into a call by its pid, lets it go."""
        log = self._log(tool)
        held = ["sh", "-c", 'read -r _ && exec "$@"', "sh", *tool.command]
        with log.open("wb") as output, self._client.call(**_intent(tool)) as call, subprocess.Popen(
            held, cwd=tool.cwd, env=self._environment(), stdin=subprocess.PIPE, stdout=output, stderr=output
        ) as process:  # fmt: skip
            call.begin(process.pid)
            process.communicate(b"go\n")
        step = _with_answer(self._blank(tool, "process"), call.answer)
        self._ear.report_of(call.id)
        return self._write(_with_report(step, call.report, process.returncode, _tail(log)))

    # ---- the end

    def end(self) -> None:
        """Writes the last line of the transcript and stops listening."""
        usage = self._client.limits().usage
        self._ear.close()
        self._writer.end(AgentEnd(
            agent=self.agent, memory_peak_bytes=usage.memory_peak_bytes, cpu_us=usage.cpu_usage_us,
            messages_heard=self._ear.heard, messages_lost=self._ear.lost, findings=self.findings,
        ))  # fmt: skip

    # ---- inside

    def _environment(self) -> dict[str, str]:
        home = str(self.site.workspace)
        who = {"NAME": f"Agent {self.agent}", "EMAIL": f"{self.agent}@localhost"}
        git = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in who.items()}
        # The agent's own import path is no business of its tools.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return (
            inherited | git | {"HOME": home, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C.UTF-8", "PAGER": "cat"}
        )

    def _log(self, tool: Tool) -> Path:
        return self.site.workspace / f"{tool.name}.log"

    def _blank(self, tool: Tool, door: str) -> Step:
        return Step(
            agent=self.agent, name=tool.name, title=tool.title, door=door, command=tuple(tool.command),
            declared=dict(tool.limits), because_of=tool.because_of,
        )  # fmt: skip

    def _through_launcher(self, tool: Tool, door: str, options: list[str]) -> Step:
        command = [self.site.launcher, "run", "--json", *options]
        if door == "launcher":
            command += ["--label", f"step={tool.name}"]
        log = self._log(tool)
        with log.open("wb") as output, subprocess.Popen(
            [*command, "--", *tool.command], cwd=tool.cwd, env=self._environment(), stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            # The first line is the launcher's answer, the rest is what the tool says.
            first = process.stderr.readline()
            for rest in process.stderr:
                output.write(rest)
        answer = _launcher_answer(first)
        step = msgspec.structs.replace(
            self._blank(tool, door), decision=answer["decision"], call_id=answer["call_id"], answer=answer["message"],
            suggestion=answer["suggestion"], exit_status=process.returncode,
        )  # fmt: skip
        if not step.call_id:
            return step
        report = self._ear.report_of(step.call_id)
        return _with_report(step, report, process.returncode, _tail(log))

    def _write(self, step: Step) -> Step:
        self._writer.step(step)
        return step


def _as_options(limits: dict[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in limits.items()]


def _intent(tool: Tool) -> IntentArguments:
    """What `agentcg run` would make of the same options."""
    names = {"class": "cpu_class"}
    limits: dict[str, object] = {
        names.get(name, name.replace("-", "_")): int(value) if name == "pids" else value
        for name, value in tool.limits.items()
    }
    return cast(IntentArguments, {**limits, "command": list(tool.command), "labels": {"step": tool.name}})


def _launcher_answer(line: bytes) -> dict[str, str]:
    try:
        found = json.loads(line)
        return {name: str(found[name]) for name in ("decision", "call_id", "message", "suggestion")}
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"agentcg run --json said {line[:200]!r} instead of its answer") from error


def _with_answer(step: Step, answer: Answer) -> Step:
    return msgspec.structs.replace(
        step, decision=str(answer.decision), reason=str(answer.reason or ""), answer=answer.message,
        suggestion=answer.suggestion, call_id=answer.call_id,
    )  # fmt: skip


def _with_report(step: Step, report: Report, exit_status: int | None, tail: str) -> Step:
    return msgspec.structs.replace(
        step, verdict=str(report.verdict), message=report.message, advice=report.advice, duration_ms=report.duration_ms,
        memory_peak_bytes=report.usage.memory_peak_bytes, cpu_us=report.usage.cpu_usage_us,
        pids_peak=report.usage.pids_peak, leftover_processes=report.leftover_processes, exit_status=exit_status,
        output_tail=tail,
    )  # fmt: skip


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-TAIL_LINES:])


Script = Callable[[Harness], None]
