"""The words of the contract: every closed set, as agents, daemon, history, metrics and command line write it.

`CpuClass.BATCH` is `batch` in text and CPU_CLASS_BATCH in proto/v1/types.proto.
"""

from enum import StrEnum


class CpuClass(StrEnum):
    """How a call wants the CPU: decides latency, not share."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


class OnExceed(StrEnum):
    """What happens when a call wants more memory than it expected; docs/ladder.md."""

    STOP = "stop"
    THROTTLE = "throttle"
    EXTEND = "extend"


class Priority(StrEnum):
    """Which session goes first when memory or CPU is short."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class Decision(StrEnum):
    """The answer to an intent."""

    GRANTED = "granted"
    TRIMMED = "trimmed"
    QUEUED = "queued"
    REFUSED = "refused"


class Reason(StrEnum):
    """Why an intent was trimmed, queued or refused."""

    SESSION_MEMORY = "session_memory"
    SESSION_CPU = "session_cpu"
    SESSION_PIDS = "session_pids"
    SESSION_CALLS = "session_calls"
    HOST_MEMORY = "host_memory"
    HOST_CPU = "host_cpu"
    HOST_PIDS = "host_pids"
    HOST_CALLS = "host_calls"
    PARENT_CALL = "parent_call"
    SESSION_CLOSING = "session_closing"
    HOST_DRAINING = "host_draining"
    QUEUE_FULL = "queue_full"
    SESSION_FROZEN = "session_frozen"


class SessionState(StrEnum):
    """Where a session is in its life."""

    OPEN = "open"
    FROZEN = "frozen"
    CLOSING = "closing"


class SchedulerState(StrEnum):
    """Whether our CPU scheduler runs; without it the kernel's own enforces the same weights and caps."""

    OFF = "off"
    ATTACHED = "attached"
    WAITING = "waiting"  # it ended, or could not be attached; tried again later
    REFUSED = "refused"  # another one is loaded, or the kernel does not take ours: not tried again


class CallState(StrEnum):
    """Where a call is in its life."""

    DECLARED = "declared"
    QUEUED = "queued"
    RUNNING = "running"
    FROZEN = "frozen"
    ENDING = "ending"
    ENDED = "ended"


class Verdict(StrEnum):
    """How a call ended; the values are metric labels and words of the history."""

    OK = "ok"
    EXIT_CODE = "exit_code"
    MEMORY_LIMIT_CALL = "memory_limit_call"
    MEMORY_LIMIT_SESSION = "memory_limit_session"
    MEMORY_LIMIT_HOST = "memory_limit_host"
    PIDS_LIMIT = "pids_limit"
    DEADLINE = "deadline"
    THROTTLE_LIMIT = "throttle_limit"
    OPERATOR = "operator"
    SESSION_END = "session_end"
    PARENT_END = "parent_end"
    PROTECTION = "protection"
    SIGNAL = "signal"
    NOT_BEGUN = "not_begun"
    UNKNOWN = "unknown"


class Level(StrEnum):
    """How much room a session has left."""

    AMPLE = "ample"
    TIGHT = "tight"
    CRITICAL = "critical"


class Actor(StrEnum):
    """Who decided something."""

    AGENT = "agent"
    OPERATOR = "operator"
    POLICY = "policy"
    KERNEL = "kernel"
    DAEMON = "daemon"


class Action(StrEnum):
    """What was decided: the words of the decision log."""

    OPENED = "opened"
    ADOPTED = "adopted"  # taken over from an earlier daemon
    CLOSED = "closed"
    GRANTED = "granted"
    TRIMMED = "trimmed"
    QUEUED = "queued"
    REFUSED = "refused"
    LAPSED = "lapsed"  # a grant, or a place in the queue, was given back unused
    BEGUN = "begun"
    EXTENDED = "extended"
    THROTTLED = "throttled"
    WARNED = "warned"
    CLAMPED = "clamped"
    SLOWED = "slowed"
    RELEASED = "released"
    FROZEN = "frozen"
    THAWED = "thawed"
    KILLED = "killed"
    RECLAIMED = "reclaimed"
    RELIMITED = "relimited"
    PRIORITISED = "prioritised"
    DRAINED = "drained"
    RESUMED = "resumed"  # the end of a drain
    RELOADED = "reloaded"
    ENDED = "ended"


class TransparentScope(StrEnum):
    """Which execs in a session are looked at, to make each a call without its having asked."""

    OFF = "off"
    AGENT = "agent"  # of what the agent runtime starts
    OUTSIDE = "outside"  # of what enters the session from outside
    ALL = "all"


class Rung(StrEnum):
    """Where a call stands on its ladder: what is being done about the memory it wants; docs/ladder.md."""

    CALM = "calm"
    WARNED = "warned"  # it has been told that its limit is near, and runs freely up to it
    THROTTLED = "throttled"  # over what it declared: the kernel slows it down
    CLAMPED = "clamped"  # the same, because there is no room to extend it
    FROZEN = "frozen"  # stands still until there is room


class Limit(StrEnum):
    """A limit of which somebody is warned: whose, and of what; the values are metric labels."""

    CALL_MEMORY = "call_memory"
    CALL_PROCESSES = "call_processes"
    CALL_DEADLINE = "call_deadline"
    SESSION_MEMORY = "session_memory"
    SESSION_PROCESSES = "session_processes"
    AGENT_MEMORY = "agent_memory"
    HOST_MEMORY = "host_memory"


class FeedbackKind(StrEnum):
    """What a message on the stream is about."""

    HELLO = "hello"
    DECLARED = "declared"
    QUEUED = "queued"
    REFUSED = "refused"
    STARTED = "started"
    WARNING = "warning"
    ADJUSTED = "adjusted"
    FROZEN = "frozen"
    THAWED = "thawed"
    ENDED = "ended"
    SESSION = "session"
    THROTTLED = "throttled"
    RELEASED = "released"
