"""Rows about the daemon: what it costs, what it loses, and what it cannot enforce here."""

from typing import Final

from dashboards.panel import HOST, Kind, Panel, Query, Row, quantiles

_RED_ABOVE_0: Final = {
    "thresholds": {
        "mode": "absolute",
        "steps": [{"color": "green", "value": None}, {"color": "red", "value": 0.5}],
    }
}
_NO_YES: Final = {
    **_RED_ABOVE_0,
    "mappings": [{"type": "value", "options": {"0": {"text": "no"}, "1": {"text": "yes"}}}],
}

DAEMON_ROW: Final = Row(
    "The daemon itself",
    (
        Panel(
            "Placement",
            "From the request being read to the process being in its call's cgroup.",
            Kind.TIMESERIES,
            "s",
            quantiles("agentcgroup_placement_seconds", "door"),
        ),
        Panel(
            "CPU",
            "CPU time of agentcgroupd; 100 % is one core.",
            Kind.TIMESERIES,
            "percentunit",
            (
                Query(
                    f"sum by (instance) (rate(agentcgroup_daemon_cpu_seconds_total{{{HOST}}}[$__rate_interval]))",
                    "{{instance}}",
                ),
            ),
        ),
        Panel(
            "Memory",
            "Resident memory of agentcgroupd.",
            Kind.TIMESERIES,
            "bytes",
            (Query(f"agentcgroup_daemon_resident_memory_bytes{{{HOST}}}", "{{instance}}"),),
        ),
        Panel(
            "Descriptors and threads",
            "File descriptors and threads of agentcgroupd. Every live call holds a few descriptors.",
            Kind.TIMESERIES,
            "short",
            (
                Query(f"agentcgroup_daemon_open_fds{{{HOST}}}", "{{instance}} descriptors"),
                Query(f"agentcgroup_daemon_threads{{{HOST}}}", "{{instance}} threads"),
            ),
        ),
        Panel(
            "Errors",
            "Requests that failed; faults of the daemon and ejections of its scheduler, which should stay at 0.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum by (kind) (rate(agentcgroup_request_errors_total{{{HOST}}}[$__rate_interval]))",
                    "{{kind}}",
                ),
                Query(
                    f"sum(rate(agentcgroup_internal_errors_total{{{HOST}}}[$__rate_interval]))",
                    "fault of the daemon",
                ),
                Query(
                    f"sum(rate(agentcgroup_scheduler_ejections_total{{{HOST}}}[$__rate_interval]))",
                    "ejection of the CPU scheduler",
                ),
            ),
        ),
        Panel(
            "Lost",
            "Messages to slow subscribers, kernel events without room, calls and decisions the history lost. Should be 0.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum(rate(agentcgroup_feedback_dropped_total{{{HOST}}}[$__rate_interval]))", "feedback"
                ),
                Query(
                    f"sum(rate(agentcgroup_kernel_events_lost_total{{{HOST}}}[$__rate_interval]))",
                    "kernel events",
                ),
                Query(
                    f"sum by (cause) (rate(agentcgroup_history_dropped_total{{{HOST}}}[$__rate_interval]))",
                    "history: {{cause}}",
                ),
                Query(
                    f"sum by (cause) (rate(agentcgroup_history_events_dropped_total{{{HOST}}}[$__rate_interval]))",
                    "event log: {{cause}}",
                ),
            ),
        ),
        Panel(
            "History is written",
            "Whether ended calls reach the history file. If not, the log of agentcgroupd has the cause.",
            Kind.STAT,
            "bool_yes_no",
            (Query(f"min(agentcgroup_history_working{{{HOST}}})"),),
            4,
            extra={
                "thresholds": {
                    "mode": "absolute",
                    "steps": [{"color": "red", "value": None}, {"color": "green", "value": 1}],
                }
            },
        ),
        Panel(
            "History",
            "Ended calls in the history, and those not written yet.",
            Kind.TIMESERIES,
            "short",
            (
                Query(f"agentcgroup_history_entries{{{HOST}}}", "{{instance}} entries"),
                Query(f"agentcgroup_history_waiting_entries{{{HOST}}}", "{{instance}} waiting"),
            ),
            10,
        ),
        Panel(
            "Size of the history",
            "The history file with its write-ahead log; bounded by history.max_size and history.keep.",
            Kind.TIMESERIES,
            "bytes",
            (Query(f"agentcgroup_history_size_bytes{{{HOST}}}", "{{instance}}"),),
            10,
        ),
    ),
)

ENFORCEMENT_ROW: Final = Row(
    "What is not enforced",
    (
        Panel(
            "Missing capabilities",
            "What a host cannot do. `agentcg check` on it says what each absence costs and what to do about it. "
            "Empty when nothing is missing.",
            Kind.TABLE,
            "short",
            (Query(f"max by (instance, capability) (agentcgroup_capability_available{{{HOST}}}) == 0"),),
            12,
            renamed={"Value": "available"},
        ),
        Panel(
            "Tier",
            "Highest tier that works: cgroup enforces by files, bpf sees events in the kernel, scx schedules.",
            Kind.STAT,
            "short",
            (Query(f"max by (instance, tier) (agentcgroup_tier{{{HOST}}}) == 1", "{{instance}}: {{tier}}"),),
            6,
            text="name",
        ),
        Panel(
            "CPU scheduler",
            "State of the daemon's own; while it is not attached the kernel's enforces the same weights and caps.",
            Kind.STAT,
            "short",
            (
                Query(
                    f"max by (instance, state) (agentcgroup_scheduler_state{{{HOST}}}) == 1",
                    "{{instance}}: {{state}}",
                ),
            ),
            6,
            text="name",
        ),
        Panel(
            "Dry run",
            "Whether a daemon shown only says what it would do.",
            Kind.STAT,
            "short",
            (Query(f"max(agentcgroup_dry_run{{{HOST}}})"),),
            6,
            extra=_NO_YES,
        ),
    ),
)
