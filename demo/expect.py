"""What must have happened: one sentence an expectation, judged on what was written down. Pure: a Run in, verdicts out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from agentcgroup.client import Decision, Reason, Verdict as CallVerdict
from agentcgroup.proto.quantity import format_size, parse_size
from demo.records import PastCall, Run, Step, Verdict
from demo.story import BUILDER, LOAD_FIRST_MEMORY_MAX, MIB, StepName

# A call stopped at its limit has come up to it but for the pages the kernel could not charge in one batch.
NEAR: Final = 0.9
BURST_LEAST_BYTES: Final = 200 * MIB
CALLS_METRIC: Final = "agentcgroup_calls_ended_total"
OOM_VERDICTS: Final = (
    CallVerdict.MEMORY_LIMIT_CALL, CallVerdict.MEMORY_LIMIT_SESSION, CallVerdict.MEMORY_LIMIT_HOST,
)  # fmt: skip

Judgement = tuple[bool, str]


@dataclass(frozen=True, slots=True)
class Expectation:
    """`judge` tells whether the sentence holds, and what was seen."""

    sentence: str
    judge: Callable[[Run], Judgement]


def steps_of(run: Run) -> list[Step]:
    """Every step of every agent."""
    return [step for agent in run.agents for step in agent.transcript.steps]


def find(run: Run, name: StepName) -> Step | None:
    """The step called `name`; None when it never came to it."""
    return next((step for step in steps_of(run) if step.name == name), None)


def finding(run: Run, name: str) -> str:
    """What an agent found out; empty when it did not."""
    ends = [agent.transcript.end for agent in run.agents if agent.transcript.end is not None]
    return next((end.findings[name] for end in ends if name in end.findings), "")


def _shown(step: Step | None) -> str:
    if step is None:
        return "the agent never came to it"
    what = step.verdict or step.decision or "no answer"
    peak = f", peak {format_size(step.memory_peak_bytes)}" if step.memory_peak_bytes is not None else ""
    return f"{step.name}: {what}{peak}; {step.message or step.answer}"


def _sizes(values: Iterable[int | None]) -> str:
    return " + ".join("unknown" if value is None else format_size(value) for value in values)


def ended(
    name: StepName, verdict: CallVerdict, *, after: StepName | None = None
) -> Callable[[Run], Judgement]:
    """The step ended with `verdict`, and was taken because of what was said to `after`."""

    def judge(run: Run) -> Judgement:
        step = find(run, name)
        holds = step is not None and step.verdict == verdict and (after is None or step.because_of == after)
        return holds, _shown(step)

    return judge


# ---- the agents


def _runtimes_survive(run: Run) -> Judgement:
    seen = ", ".join(
        f"{agent.name} {'was stopped' if agent.exit_status is None else agent.exit_status}"
        for agent in run.agents
    )
    return len(run.agents) == 3 and all(agent.exit_status == 0 for agent in run.agents), seen


def _high_priority_is_well(run: Run) -> Judgement:
    calls = [call for call in run.history if call.session == BUILDER.name]
    ill = [f"{call.step}: {call.verdict}" for call in calls if call.verdict != CallVerdict.OK]
    refused = [
        step.name
        for step in steps_of(run)
        if step.agent == BUILDER.name and step.decision == Decision.REFUSED
    ]
    ok = len(calls) - len(ill)
    return bool(calls) and not ill and not refused, f"{ok} of {len(calls)} calls ok" + "".join(
        f"; {each}" for each in ill + refused
    )


def _overcommitted(run: Run) -> Judgement:
    peaks = [
        agent.transcript.end.memory_peak_bytes if agent.transcript.end else None for agent in run.agents
    ]
    total = sum(peak or 0 for peak in peaks)
    capacity = run.place.memory_capacity_bytes
    seen = f"{_sizes(peaks)} = {format_size(total)} against {format_size(capacity)}"
    return None not in peaks and total > capacity, seen


# ---- memory


def _dies_alone(run: Run) -> Judgement:
    killed = [call for call in run.history if call.verdict in OOM_VERDICTS]
    seen = (
        ", ".join(f"{call.session}/{call.step} {call.verdict}" for call in killed)
        or "nothing was killed for memory"
    )
    holds = [(call.step, call.verdict) for call in killed] == [
        (StepName.LOAD_TOO_LITTLE, CallVerdict.MEMORY_LIMIT_CALL)
    ]
    return holds, seen


def _dies_at_its_limit(run: Run) -> Judgement:
    step, limit = find(run, StepName.LOAD_TOO_LITTLE), parse_size(LOAD_FIRST_MEMORY_MAX)
    peak = step.memory_peak_bytes if step else None
    return peak is not None and NEAR * limit <= peak <= limit, _shown(step)


def _declares_more(run: Run) -> Judgement:
    step, advised = find(run, StepName.LOAD), finding(run, "advised_memory")
    holds = step is not None and bool(advised) and step.declared.get("memory") == advised
    return (
        holds,
        f"advised {advised or 'nothing'}, declared {step.declared.get('memory') if step else 'nothing'}",
    )


def _is_trimmed(run: Run) -> Judgement:
    step = find(run, StepName.LOAD)
    holds = (
        step is not None
        and step.decision == Decision.TRIMMED
        and step.reason == Reason.SESSION_MEMORY
        and bool(step.suggestion)
    )
    return holds, f"{step.decision}: {step.answer} {step.suggestion}" if step else _shown(step)


def _bursts(run: Run) -> Judgement:
    step = find(run, StepName.LOAD)
    peak = step.memory_peak_bytes if step else None
    holds = (
        step is not None
        and step.verdict == CallVerdict.OK
        and peak is not None
        and peak >= BURST_LEAST_BYTES
    )
    return holds, _shown(step)


def _does_less(run: Run) -> Judgement:
    load, stream = find(run, StepName.LOAD), find(run, StepName.STREAM)
    peaks = [step.memory_peak_bytes if step else None for step in (load, stream)]
    same = bool(finding(run, "loaded")) and finding(run, "loaded") == finding(run, "streamed")
    less = peaks[0] is not None and peaks[1] is not None and peaks[1] * 3 < peaks[0]
    holds = stream is not None and stream.verdict == CallVerdict.OK and less and same
    return (
        holds,
        f"peaks {_sizes(peaks[:1])} and {_sizes(peaks[1:])}, results {'the same' if same else 'not the same'}",
    )


# ---- refusal


def _is_refused(run: Run) -> Judgement:
    step = find(run, StepName.TESTS_REFUSED)
    holds = step is not None and step.decision == Decision.REFUSED and step.reason == Reason.HOST_MEMORY
    return holds and bool(
        finding(run, "suggested_memory")
    ), f"{step.decision}: {step.answer} {step.suggestion}" if step else _shown(step)


def _follows_suggestion(run: Run) -> Judgement:
    step, suggested = find(run, StepName.TESTS), finding(run, "suggested_memory")
    holds = (
        step is not None
        and step.decision == Decision.GRANTED
        and step.because_of == StepName.TESTS_REFUSED
        and bool(suggested)
        and parse_size(step.declared["memory"]) <= parse_size(suggested)
    )
    return (
        holds,
        f"suggested {suggested or 'nothing'}; {step.declared.get('memory')} {step.decision}"
        if step
        else _shown(step),
    )


def _tests_pass(run: Run) -> Judgement:
    step = find(run, StepName.TESTS)
    last = step.output_tail.splitlines()[-1] if step and step.output_tail else ""
    return (
        step is not None and step.verdict == CallVerdict.OK and " passed" in last and "failed" not in last,
        last or _shown(step),
    )


# ---- processes


def _leftover_is_killed(run: Run) -> Judgement:
    step = find(run, StepName.SERVE)
    holds = step is not None and step.verdict == CallVerdict.OK and step.leftover_processes == 1
    return holds, f"{_shown(step)}; leftovers {step.leftover_processes if step else 'unknown'}"


def _forks_stop(run: Run) -> Judgement:
    step = find(run, StepName.FORK_WITHOUT_END)
    limit = int(step.declared.get("pids", "0")) if step else 0
    holds = step is not None and step.verdict == CallVerdict.PIDS_LIMIT and step.pids_peak == limit
    return holds, f"{_shown(step)}; at most {step.pids_peak if step else 'unknown'} processes of {limit}"


# ---- the daemon's books


def _stream_and_history_agree(run: Run) -> Judgement:
    kept = {call.call_id: call for call in run.history}
    steps = [step for step in steps_of(run) if step.call_id and step.verdict]
    different = [step.name for step in steps if not _same(step, kept.get(step.call_id))]
    nested = [call for call in run.history if call.parent_call_id]
    holds = bool(steps) and not different and len(kept) == len(steps) + len(nested)
    return (
        holds,
        f"{len(steps)} calls told to the agents, {len(nested)} nested, {len(kept)} in the history"
        + "".join(f"; {name} differs" for name in different),
    )


def _same(step: Step, call: PastCall | None) -> bool:
    return call is not None and (step.verdict, step.message, step.memory_peak_bytes, step.leftover_processes) == (
        call.verdict, call.message, call.memory_peak_bytes, call.leftover_processes,
    )  # fmt: skip


def _nested_inside(run: Run) -> Judgement:
    review = find(run, StepName.REVIEW)
    nested = [call for call in run.history if review is not None and call.parent_call_id == review.call_id]
    return len(nested) == 2, f"{len(nested)} nested calls" + "".join(
        f"; {call.step} {call.verdict}" for call in nested
    )


def _metrics_agree(run: Run) -> Judgement:
    counted = round(
        sum(value for name, value in run.metrics.items() if name.partition("{")[0] == CALLS_METRIC)
    )
    return counted == len(run.history) > 0, f"{CALLS_METRIC} {counted}, history {len(run.history)}"


def _nothing_lost(run: Run) -> Judgement:
    ends = [agent.transcript.end for agent in run.agents]
    lost = sum(end.messages_lost for end in ends if end is not None)
    return (
        None not in ends and lost == 0,
        f"{sum(end.messages_heard for end in ends if end)} messages heard, {lost} lost",
    )


def _nothing_remains(run: Run) -> Judgement:
    left = run.remains
    seen = [f"session {name}" for name in left.sessions] + [f"cgroup {name}" for name in left.cgroups]
    seen += [f"process {name}" for name in left.processes]
    return not seen, ", ".join(seen) or "no session, no cgroup, no process"


EXPECTATIONS: Final = (
    Expectation("Every agent runtime came to its own end with status 0.", _runtimes_survive),
    Expectation(
        "Every call of the high-priority agent ended well, and none was refused.", _high_priority_is_well
    ),
    Expectation("The peaks of the three sessions add up to more than the host's budget.", _overcommitted),
    Expectation("The call that declared too little memory was killed, alone.", _dies_alone),
    Expectation("It was stopped at its own limit and not before.", _dies_at_its_limit),
    Expectation("Its agent read the advice and declared that.", _declares_more),
    Expectation("What it asked beyond its session's budget was trimmed, with the reason.", _is_trimmed),
    Expectation("With the memory advised, the burst of several hundred MiB ended well.", _bursts),
    Expectation("Doing less, streaming, it needs less than a third and gets the same result.", _does_less),
    Expectation(
        "An intent for more than the host has left was refused, with the reason and a figure.", _is_refused
    ),
    Expectation("Its agent followed the suggestion and was granted.", _follows_suggestion),
    Expectation("The test suite of the real package passed.", _tests_pass),
    Expectation(
        "A server left in the background was killed with its call and counted.", _leftover_is_killed
    ),
    Expectation("The call that forked without end was held at its limit of processes.", _forks_stop),
    Expectation(
        "With few workers the same work ended well.",
        ended(StepName.FORK_FEW, CallVerdict.OK, after=StepName.FORK_WITHOUT_END),
    ),
    Expectation(
        "The call that slept past its deadline was stopped.", ended(StepName.WAIT, CallVerdict.DEADLINE)
    ),
    Expectation("Its agent did less per call.", ended(StepName.LOOK, CallVerdict.OK, after=StepName.WAIT)),
    Expectation("The sub-agent's two calls ran nested in its own.", _nested_inside),
    Expectation(
        "Agents' streams and the daemon's history tell the same of every call.", _stream_and_history_agree
    ),
    Expectation("No message was lost on the way.", _nothing_lost),
    Expectation("The metrics count as many ended calls as the history holds.", _metrics_agree),
    Expectation("No session, no cgroup and no process is left.", _nothing_remains),
)


def judge(run: Run) -> tuple[Verdict, ...]:
    """Every expectation, in order."""
    verdicts = []
    for expectation in EXPECTATIONS:
        holds, seen = expectation.judge(run)
        verdicts.append(Verdict(expectation.sentence, holds, seen))
    return tuple(verdicts)
