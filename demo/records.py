"""What is written down: steps by the agents, observations by the stage, the whole run in report.json.

All values are msgspec structs, encoded as JSON with the field names as they stand here. Sizes are bytes, times as the name
says; None is unknown or undeclared.
"""

from typing import Final

import msgspec


class Step(msgspec.Struct, frozen=True):
    """One tool call as its agent saw it; a refused intent is a step without a call."""

    agent: str
    name: str
    title: str
    # launcher, ticket (declared over gRPC, begun by the launcher), sdk (context manager), process (placed by pid), nested
    door: str
    command: tuple[str, ...] = ()
    declared: dict[str, str] = {}
    decision: str = ""
    reason: str = ""
    answer: str = ""
    suggestion: str = ""
    call_id: str = ""
    parent_call_id: str = ""
    # As the agent's own wait() told: negative is a signal.
    exit_status: int | None = None
    verdict: str = ""
    message: str = ""
    advice: str = ""
    duration_ms: int = 0
    memory_peak_bytes: int | None = None
    cpu_us: int | None = None
    pids_peak: int | None = None
    leftover_processes: int = 0
    # Name of the step whose message made the agent take this one.
    because_of: str = ""
    output_tail: str = ""


class AgentEnd(msgspec.Struct, frozen=True):
    """What an agent writes last: its session's figures and what its script found."""

    agent: str
    memory_peak_bytes: int | None
    cpu_us: int | None
    messages_heard: int
    messages_lost: int
    findings: dict[str, str] = {}


class Transcript(msgspec.Struct, frozen=True):
    """All that one agent wrote down; `end` is None when it did not come to its end."""

    steps: tuple[Step, ...] = ()
    end: AgentEnd | None = None


class AgentRun(msgspec.Struct, frozen=True):
    """One agent from the outside. `exit_status` None: it had to be stopped."""

    name: str
    priority: str
    task: str
    memory_bytes: int
    exit_status: int | None
    transcript: Transcript
    output_tail: str = ""


class PastCall(msgspec.Struct, frozen=True):
    """A call as the daemon's history keeps it."""

    call_id: str
    session: str
    parent_call_id: str
    verdict: str
    decision: str
    command: tuple[str, ...]
    duration_ms: int
    memory_peak_bytes: int | None
    cpu_us: int | None
    leftover_processes: int
    message: str
    # The label that agents put on their calls.
    step: str


class Cost(msgspec.Struct, frozen=True):
    """What the daemon itself used while the agents worked."""

    rss_bytes: int
    memory_peak_bytes: int | None
    cpu_us: int | None
    wall_ms: int
    calls: int


class Place(msgspec.Struct, frozen=True):
    """Where the job ran."""

    where: str
    why: str
    kernel: str
    tier: str
    memory_capacity_bytes: int
    cpu_capacity_milli: int
    missing: tuple[str, ...]


class Remains(msgspec.Struct, frozen=True):
    """What was left when all agents had ended."""

    sessions: tuple[str, ...]
    cgroups: tuple[str, ...]
    processes: tuple[str, ...]


class Verdict(msgspec.Struct, frozen=True):
    """One expectation, judged."""

    sentence: str
    holds: bool
    seen: str


class Run(msgspec.Struct, frozen=True):
    """All of it; `expectations` is empty until it is judged."""

    started_at: str
    duration_ms: int
    place: Place
    agents: tuple[AgentRun, ...]
    history: tuple[PastCall, ...]
    cost: Cost
    remains: Remains
    metrics: dict[str, float]
    metrics_url: str
    operator_socket: str
    expectations: tuple[Verdict, ...] = ()


class SessionSample(msgspec.Struct, frozen=True):
    name: str
    priority: str
    memory_current_bytes: int | None
    memory_peak_bytes: int | None
    memory_reserved_bytes: int
    memory_max_bytes: int | None
    running: tuple[str, ...]


class Said(msgspec.Struct, frozen=True, tag="said"):
    """The job itself speaks."""

    at_s: float
    text: str


class Told(msgspec.Struct, frozen=True, tag="told"):
    """The daemon told an agent something."""

    at_s: float
    session: str
    kind: str
    text: str
    advice: str = ""
    verdict: str = ""


class Sampled(msgspec.Struct, frozen=True, tag="sampled"):
    """How things stand."""

    at_s: float
    memory_current_bytes: int | None
    memory_capacity_bytes: int
    sessions: tuple[SessionSample, ...]


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The story is over and judged."""

    run: Run


Event = Said | Told | Sampled | Finished

_EVENTS: Final[msgspec.json.Decoder[Event]] = msgspec.json.Decoder(Event)

# In front of every event on the standard output of a job that runs in the guest; other lines are shown as they are.
EVENT_MARK: Final = "@event "


def encode_event(event: Event) -> str:
    """`event` as one line, without the line's end."""
    return EVENT_MARK + msgspec.json.encode(event).decode()


def decode_event(line: str) -> Event | None:
    """The event in `line`; None when it is none."""
    if not line.startswith(EVENT_MARK):
        return None
    try:
        return _EVENTS.decode(line.removeprefix(EVENT_MARK))
    except msgspec.DecodeError:
        return None
