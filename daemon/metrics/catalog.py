"""Every metric of the daemon: name, type, unit, help and labels, one row each.

The collector emits what stands here and nothing else; docs/metrics.md is printed from it and the
dashboard is checked against it. Base units only (seconds, bytes, cores). Label values are closed lists,
except `session`, of which there are at most `host.sessions_max`. No label names a call or a process:
those are in the history. One long table, because it is one: its order is that of the page and of a scrape.
"""

from typing import Final

from agentcgroup.daemon.counters import Door
from agentcgroup.daemon.errors import Kind
from agentcgroup.daemon.history import DropCause
from agentcgroup.daemon.host.capabilities import NAMES as CAPABILITY_NAMES
from agentcgroup.daemon.host.kernel_events import LOSSES as EVENT_LOSSES
from agentcgroup.daemon.metrics.metric import Group, Label, Metric, counter, gauge, histogram
from agentcgroup.daemon.model import (
    CallState,
    CpuClass,
    Decision,
    KillReason,
    Priority,
    QueueOutcome,
    Reason,
    SchedulerState,
    SessionState,
    Tier,
    Verdict,
)
from agentcgroup.proto.words import Action, Limit

# Stands for "the caller declared none" and "no reason: granted as asked".
UNDECLARED: Final = "undeclared"
NO_REASON: Final = "none"

# Changes of cgroup files: what is not of the BPF programs.
WATCH: Final = "watch"

SESSION: Final = Label("session", source="name of a live session, at most `host.sessions_max`")
VERSION: Final = Label("version", source="version of agentcgroupd, one for its life")
KERNEL: Final = Label("kernel", source="release of the running kernel, one for its life")
PRIORITY: Final = Label("priority", tuple(Priority))
SESSION_STATE: Final = Label("state", tuple(SessionState))
CALL_STATE: Final = Label("state", tuple(state for state in CallState if state is not CallState.ENDED))
TIER: Final = Label("tier", tuple(Tier))
CAPABILITY: Final = Label("capability", CAPABILITY_NAMES)
MODE: Final = Label("mode", ("user", "system"))
RESOURCE: Final = Label("resource", ("memory", "cpu"))
MEMORY_EVENT: Final = Label("event", ("high", "max", "oom_kill"))
VERDICT: Final = Label("verdict", tuple(Verdict))
CPU_CLASS: Final = Label("cpu_class", (*CpuClass, UNDECLARED))
DECISION: Final = Label("decision", tuple(Decision))
REASON: Final = Label("reason", (NO_REASON, *Reason))
PROTECTION: Final = Label("action", (Action.SLOWED, Action.FROZEN, Action.RELEASED, Action.KILLED))
LIMIT: Final = Label("limit", tuple(Limit))
KILL_REASON: Final = Label("reason", tuple(KillReason))
DOOR: Final = Label("door", tuple(Door))
QUEUE_OUTCOME: Final = Label("outcome", tuple(QueueOutcome))
ERROR_KIND: Final = Label("kind", tuple(Kind))
EVENT_KIND: Final = Label("kind", (*EVENT_LOSSES, WATCH))
SCHEDULER_STATE: Final = Label("state", tuple(SchedulerState))
DROP_CAUSE: Final = Label("cause", tuple(DropCause))

_NO_FIGURE: Final = "this kernel does not count it"
_NO_EVENTS: Final = "there are no kernel events that tell it (`agentcg check`)"


# ---- host ---------------------------------------------------------------------------------------------

BUILD_INFO: Final = gauge(
    Group.HOST, "build_info", "", "Always 1; the labels say what runs.", (VERSION, KERNEL)
)
START_TIME: Final = gauge(
    Group.HOST, "start_time_seconds", "seconds", "When this agentcgroupd started, in Unix time."
)
DRY_RUN: Final = gauge(
    Group.HOST, "dry_run", "", "1 when the daemon says every action and does none of them, else 0."
)
HOST_TIER: Final = gauge(
    Group.HOST, "tier", "", "1 for the highest tier of enforcement that works here, else 0.", (TIER,)
)
CAPABILITY_AVAILABLE: Final = gauge(
    Group.HOST,
    "capability_available",
    "",
    "1 when this host can do it, 0 when it cannot: `agentcg check` says what that costs.",
    (CAPABILITY,),
)
HOST_MEMORY_CAPACITY: Final = gauge(
    Group.HOST, "host_memory_capacity_bytes", "bytes", "What all sessions together may use."
)
HOST_MEMORY_RESERVED: Final = gauge(
    Group.HOST,
    "host_memory_reserved_bytes",
    "bytes",
    "What live calls and agent runtimes have reserved of it.",
)
HOST_MEMORY_CURRENT: Final = gauge(
    Group.HOST,
    "host_memory_current_bytes",
    "bytes",
    "What all sessions use now.",
    missing="there is no memory controller",
)
HOST_CPU_CAPACITY: Final = gauge(
    Group.HOST, "host_cpu_capacity_cores", "cores", "CPUs that all sessions together may use."
)
SESSIONS: Final = gauge(Group.HOST, "sessions", "", "Live sessions.")
SESSIONS_LIMIT: Final = gauge(Group.HOST, "sessions_limit", "", "Most sessions at once: host.sessions_max.")
CALLS: Final = gauge(Group.HOST, "calls", "", "Live calls of all sessions by state.", (CALL_STATE,))
CALLS_LIMIT: Final = gauge(Group.HOST, "calls_limit", "", "Most live calls at once: host.calls_max.")
_NO_GUARD: Final = "there is no memory guard: no fentry, or `bpf.memory_guard` is off"
GUARD_HOLDS: Final = counter(
    Group.HOST,
    "guard_holds",
    "",
    "Holds of threads that grew into what sessions of higher priority were promised.",
    missing=_NO_GUARD,
)
GUARD_HELD: Final = counter(
    Group.HOST,
    "guard_held_seconds",
    "seconds",
    "Time for which they were held, added up over threads.",
    missing=_NO_GUARD,
)

# ---- sessions -----------------------------------------------------------------------------------------

SESSION_INFO: Final = gauge(
    Group.SESSIONS,
    "session_info",
    "",
    "Always 1; the labels say how the session stands.",
    (SESSION, PRIORITY, SESSION_STATE),
)
SESSION_MEMORY_LIMIT: Final = gauge(
    Group.SESSIONS, "session_memory_limit_bytes", "bytes", "memory.max of the session.", (SESSION,)
)
SESSION_AGENT_MEMORY: Final = gauge(
    Group.SESSIONS,
    "session_agent_memory_bytes",
    "bytes",
    "Part of the limit that is kept for the agent runtime.",
    (SESSION,),
)
SESSION_MEMORY_RESERVED: Final = gauge(
    Group.SESSIONS,
    "session_memory_reserved_bytes",
    "bytes",
    "What the session's live calls have reserved.",
    (SESSION,),
)
SESSION_MEMORY_CURRENT: Final = gauge(
    Group.SESSIONS,
    "session_memory_current_bytes",
    "bytes",
    "What the session uses now, agent runtime and calls (memory.current).",
    (SESSION,),
    _NO_FIGURE,
)
SESSION_MEMORY_PEAK: Final = gauge(
    Group.SESSIONS,
    "session_memory_peak_bytes",
    "bytes",
    "The most it has used since it began (memory.peak).",
    (SESSION,),
    _NO_FIGURE,
)
SESSION_MEMORY_EVENTS: Final = counter(
    Group.SESSIONS,
    "session_memory_events",
    "",
    "Throttled at memory.high, held at memory.max, processes killed for want of memory (memory.events).",
    (SESSION, MEMORY_EVENT),
    _NO_FIGURE,
)
SESSION_STALL: Final = counter(
    Group.SESSIONS,
    "session_stall_seconds",
    "seconds",
    "Wall time in which some task of the session waited for memory or for a CPU (PSI, some).",
    (SESSION, RESOURCE),
    "this kernel has no pressure information",
)
SESSION_CPU: Final = counter(
    Group.SESSIONS,
    "session_cpu_seconds",
    "seconds",
    "CPU time used (cpu.stat).",
    (SESSION, MODE),
    _NO_FIGURE,
)
SESSION_CPU_THROTTLED: Final = counter(
    Group.SESSIONS,
    "session_cpu_throttled_seconds",
    "seconds",
    "Time in which a CPU cap kept tasks waiting (cpu.stat).",
    (SESSION,),
    _NO_FIGURE,
)
SESSION_MEMORY_THROTTLED: Final = counter(
    Group.SESSIONS,
    "session_memory_throttled_seconds",
    "seconds",
    "Time in which memory.high held threads back, added up over threads (kernel events).",
    (SESSION,),
    _NO_EVENTS,
)
SESSION_FORKS: Final = counter(
    Group.SESSIONS,
    "session_forks",
    "",
    "Processes forked in the session, by its agent and by its calls (kernel events).",
    (SESSION,),
    _NO_EVENTS,
)
SESSION_CPU_LIMIT: Final = gauge(
    Group.SESSIONS,
    "session_cpu_limit_cores",
    "cores",
    "CPU cap of the session (cpu.max).",
    (SESSION,),
    "the session has no cap",
)
SESSION_PIDS: Final = gauge(
    Group.SESSIONS,
    "session_pids",
    "",
    "Processes and threads in the session (pids.current).",
    (SESSION,),
    _NO_FIGURE,
)
SESSION_PIDS_LIMIT: Final = gauge(
    Group.SESSIONS,
    "session_pids_limit",
    "",
    "Most processes and threads (pids.max).",
    (SESSION,),
    "the session has no limit",
)
SESSION_FORKS_REFUSED: Final = counter(
    Group.SESSIONS,
    "session_forks_refused",
    "",
    "Forks that the kernel refused at a pids.max (pids.events).",
    (SESSION,),
    _NO_FIGURE,
)
SESSION_CALLS: Final = gauge(Group.SESSIONS, "session_calls", "", "Live calls of the session.", (SESSION,))
SESSION_CALLS_LIMIT: Final = gauge(
    Group.SESSIONS, "session_calls_limit", "", "Most live calls of the session at once.", (SESSION,)
)
SESSION_CALLS_ENDED: Final = counter(
    Group.SESSIONS, "session_calls_ended", "", "Calls of the session that have ended.", (SESSION,)
)

# ---- calls --------------------------------------------------------------------------------------------

ANSWERS: Final = counter(
    Group.CALLS,
    "answers",
    "",
    "Intents answered; `reason` is `none` when granted as asked.",
    (DECISION, REASON),
)
CALLS_ENDED: Final = counter(
    Group.CALLS,
    "calls_ended",
    "",
    "Calls ended, by verdict, priority of their session, and the CPU class they declared.",
    (VERDICT, PRIORITY, CPU_CLASS),
)
KILLS: Final = counter(
    Group.CALLS,
    "kills",
    "",
    "Calls that the daemon killed. Kills by the kernel are verdicts.",
    (KILL_REASON,),
)
PROTECTIONS: Final = counter(
    Group.CALLS,
    "protections",
    "",
    "What was done to calls so that others have memory: slowed, frozen, killed, and released again.",
    (PROTECTION,),
)
LIMIT_WARNINGS: Final = counter(
    Group.CALLS,
    "limit_warnings",
    "",
    "Warnings to calls and agents that a limit is near, or refuses them something.",
    (LIMIT,),
)
MARKS_CROSSED: Final = counter(
    Group.CALLS,
    "marks_crossed",
    "",
    "How often the calls of a session came to where the daemon had to look.",
)
CALLS_HELD: Final = gauge(
    Group.CALLS, "calls_held", "", "Calls that are slowed or frozen now so that others have memory."
)
IDLE_RECLAIMED: Final = counter(
    Group.CALLS, "idle_reclaimed_bytes", "bytes", "Memory that waiting agent runtimes gave back."
)
LEFTOVER_PROCESSES: Final = counter(
    Group.CALLS, "leftover_processes", "", "Processes that ended calls had left behind, killed."
)
TRANSPARENT_MISSED: Final = counter(
    Group.CALLS,
    "transparent_missed",
    "",
    "Commands at a transparent door that had ended before they could become calls.",
)
TRANSPARENT_LEFT: Final = counter(
    Group.CALLS,
    "transparent_left",
    "",
    "Commands at a transparent door that run in the agent's memory, because no call could be made for them.",
)
CALL_DURATION: Final = histogram(
    Group.CALLS,
    "call_duration_seconds",
    "seconds",
    "How long ended calls had run. Calls that never began are not in it.",
    (CPU_CLASS,),
)
CALL_MEMORY_PEAK: Final = histogram(
    Group.CALLS,
    "call_memory_peak_bytes",
    "bytes",
    "Peak memory of ended calls. Calls whose peak the kernel does not say are not in it.",
    (CPU_CLASS,),
)
PLACEMENT: Final = histogram(
    Group.CALLS,
    "placement_seconds",
    "seconds",
    "From a request to begin being read to the process being in its call's cgroup.",
    (DOOR,),
)
QUEUE_WAIT: Final = histogram(
    Group.CALLS,
    "queue_wait_seconds",
    "seconds",
    "How long calls were queued for room, by how they left the queue. Those that wait now: `agentcgroup_calls`.",
    (QUEUE_OUTCOME,),
)
SESSIONS_OPENED: Final = counter(Group.CALLS, "sessions_opened", "", "Sessions created.")
SESSIONS_CLOSED: Final = counter(Group.CALLS, "sessions_closed", "", "Sessions removed.")
SESSIONS_ADOPTED: Final = counter(
    Group.CALLS, "sessions_adopted", "", "Sessions taken over from an earlier daemon."
)
CALLS_ADOPTED: Final = counter(
    Group.CALLS, "calls_adopted", "", "Running calls taken over from an earlier daemon."
)

# ---- the daemon itself --------------------------------------------------------------------------------

DAEMON_CPU: Final = counter(
    Group.DAEMON,
    "daemon_cpu_seconds",
    "seconds",
    "CPU time of agentcgroupd.",
    (MODE,),
    "the kernel does not say",
)
DAEMON_RESIDENT_MEMORY: Final = gauge(
    Group.DAEMON, "daemon_resident_memory_bytes", "bytes", "Resident memory of agentcgroupd."
)
DAEMON_OPEN_FDS: Final = gauge(
    Group.DAEMON, "daemon_open_fds", "", "File descriptors that agentcgroupd holds."
)
DAEMON_THREADS: Final = gauge(Group.DAEMON, "daemon_threads", "", "Threads of agentcgroupd.")
REQUEST_ERRORS: Final = counter(
    Group.DAEMON,
    "request_errors",
    "",
    "Requests that could not be carried out. A refused intent is an answer, not an error.",
    (ERROR_KIND,),
)
INTERNAL_ERRORS: Final = counter(
    Group.DAEMON, "internal_errors", "", "Faults of the daemon itself; each is in its log. Should stay 0."
)
FEEDBACK_DROPPED: Final = counter(
    Group.DAEMON, "feedback_dropped", "", "Messages that subscribers were too slow for."
)
SCHEDULER: Final = gauge(
    Group.DAEMON,
    "scheduler_state",
    "",
    "1 for the state of our CPU scheduler, else 0. Not attached, the kernel's own enforces the same weights and caps.",
    (SCHEDULER_STATE,),
)
SCHEDULER_EJECTIONS: Final = counter(
    Group.DAEMON,
    "scheduler_ejections",
    "",
    "How often the kernel threw our CPU scheduler off; the log has the reasons.",
)
KERNEL_EVENTS_LOST: Final = counter(
    Group.DAEMON,
    "kernel_events_lost",
    "",
    "Kernel events that did not reach the daemon: no room for a record of that kind, or for what it needs; "
    "`watch`: changes of cgroup files, whose state was read again.",
    (EVENT_KIND,),
)

# ---- history ------------------------------------------------------------------------------------------

_HISTORY_OFF: Final = "history.enabled is false"

HISTORY_WORKING: Final = gauge(
    Group.HISTORY,
    "history_working",
    "",
    "1 when ended calls reach the history file, 0 when they do not: the log has the cause and the next step.",
    missing=_HISTORY_OFF,
)
HISTORY_ENTRIES: Final = gauge(
    Group.HISTORY,
    "history_entries",
    "",
    "Ended calls in the history.",
    missing=f"{_HISTORY_OFF}, or the file could not be opened yet",
)
HISTORY_SIZE: Final = gauge(
    Group.HISTORY,
    "history_size_bytes",
    "bytes",
    "Size of the history file with its write-ahead log.",
    missing=f"{_HISTORY_OFF}, or the file could not be opened yet",
)
HISTORY_WAITING: Final = gauge(
    Group.HISTORY, "history_waiting_entries", "", "Ended calls not yet written down.", missing=_HISTORY_OFF
)
HISTORY_WRITTEN: Final = counter(
    Group.HISTORY, "history_written", "", "Ended calls written to the history.", missing=_HISTORY_OFF
)
HISTORY_DROPPED: Final = counter(
    Group.HISTORY,
    "history_dropped",
    "",
    "Ended calls that the history lost.",
    (DROP_CAUSE,),
    missing=_HISTORY_OFF,
)
HISTORY_EVENTS_WRITTEN: Final = counter(
    Group.HISTORY, "history_events_written", "", "Decisions written to the event log.", missing=_HISTORY_OFF
)
HISTORY_EVENTS_DROPPED: Final = counter(
    Group.HISTORY,
    "history_events_dropped",
    "",
    "Decisions that the event log lost.",
    (DROP_CAUSE,),
    missing=_HISTORY_OFF,
)
HISTORY_EXPIRED: Final = counter(
    Group.HISTORY, "history_expired", "", "Entries deleted by age or size.", missing=_HISTORY_OFF
)

METRICS: Final[tuple[Metric, ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
BY_NAME: Final = {metric.name: metric for metric in METRICS}
