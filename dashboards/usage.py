"""Rows about use: what hosts and sessions may use, have reserved, and use."""

from typing import Final

from dashboards.panel import HOST, SESSION, Kind, Panel, Query, Row

_NOT_ENOUGH: Final = (
    "memory_limit_call|memory_limit_session|memory_limit_host|pids_limit|throttle_limit|protection"
)
_WARN: Final = {
    "thresholds": {
        "mode": "absolute",
        "steps": [
            {"color": "green", "value": None},
            {"color": "orange", "value": 0.8},
            {"color": "red", "value": 0.95},
        ],
    }
}
HOST_ROW: Final = Row(
    "Host",
    (
        Panel(
            "Sessions",
            "Live sessions: one for each agent.",
            Kind.STAT,
            "short",
            (Query(f"sum(agentcgroup_sessions{{{HOST}}})"),),
            4,
            4,
        ),
        Panel(
            "Live calls",
            "Tool calls declared, queued, running, frozen or ending.",
            Kind.STAT,
            "short",
            (Query(f"sum(agentcgroup_calls{{{HOST}}})"),),
            4,
            4,
        ),
        Panel(
            "Memory reserved",
            "What calls and agent runtimes have reserved, of what sessions may use. At 100 % intents are trimmed, "
            "queued or refused for want of host memory.",
            Kind.STAT,
            "percentunit",
            (
                Query(
                    f"sum(agentcgroup_host_memory_reserved_bytes{{{HOST}}})"
                    f" / sum(agentcgroup_host_memory_capacity_bytes{{{HOST}}})"
                ),
            ),
            4,
            4,
            extra=_WARN,
        ),
        Panel(
            "Calls stopped by a limit",
            "Calls in the time shown that ended because memory, processes or throttling time ran out.",
            Kind.STAT,
            "short",
            (
                Query(
                    f'sum(increase(agentcgroup_calls_ended_total{{{HOST}, verdict=~"{_NOT_ENOUGH}"}}[$__range]))'
                ),
            ),
            4,
            4,
            extra={"decimals": 0},
        ),
        Panel(
            "Intents refused",
            "Intents in the time shown that got no grant, not even a smaller one.",
            Kind.STAT,
            "short",
            (Query(f'sum(increase(agentcgroup_answers_total{{{HOST}, decision="refused"}}[$__range]))'),),
            4,
            4,
            extra={"decimals": 0},
        ),
        Panel(
            "Running since",
            "How long the youngest agentcgroupd shown has been running.",
            Kind.STAT,
            "s",
            (Query(f"time() - max(agentcgroup_start_time_seconds{{{HOST}}})"),),
            4,
            4,
            extra={"decimals": 0},
        ),
        Panel(
            "Memory of the host",
            "What sessions may use, what they have reserved of it, and what they use. Use may be above the reserve: "
            "calls may grow to their maximum when there is room.",
            Kind.TIMESERIES,
            "bytes",
            (
                Query(f"sum(agentcgroup_host_memory_capacity_bytes{{{HOST}}})", "capacity"),
                Query(f"sum(agentcgroup_host_memory_reserved_bytes{{{HOST}}})", "reserved"),
                Query(f"sum(agentcgroup_host_memory_current_bytes{{{HOST}}})", "used"),
            ),
            12,
        ),
        Panel(
            "Live calls by state",
            "A call is declared until its process is placed; queued calls wait for room.",
            Kind.TIMESERIES,
            "short",
            (Query(f"sum by (state) (agentcgroup_calls{{{HOST}}})", "{{state}}"),),
            12,
            stacked=True,
        ),
    ),
)

SESSIONS_ROW: Final = Row(
    "Sessions",
    (
        Panel(
            "Memory",
            "What each session uses now: its agent runtime and all of its calls.",
            Kind.TIMESERIES,
            "bytes",
            (Query(f"agentcgroup_session_memory_current_bytes{{{SESSION}}}", "{{session}}"),),
            12,
        ),
        Panel(
            "Memory of limit",
            "Use over memory.max of the session. At 100 % the kernel stops the call that fits least.",
            Kind.TIMESERIES,
            "percentunit",
            (
                Query(
                    f"agentcgroup_session_memory_current_bytes{{{SESSION}}}"
                    f" / agentcgroup_session_memory_limit_bytes{{{SESSION}}}",
                    "{{session}}",
                ),
            ),
            12,
            extra={"min": 0, **_WARN},
        ),
        Panel(
            "CPU",
            "CPU time used, in cores.",
            Kind.TIMESERIES,
            "suffix: cores",
            (
                Query(
                    "sum by (instance, session) "
                    f"(rate(agentcgroup_session_cpu_seconds_total{{{SESSION}}}[$__rate_interval]))",
                    "{{session}}",
                ),
            ),
        ),
        Panel(
            "Waiting for memory or CPU",
            "Share of time in which some task of the session stood still for want of memory or of a CPU (PSI, some).",
            Kind.TIMESERIES,
            "percentunit",
            (
                Query(
                    f"rate(agentcgroup_session_stall_seconds_total{{{SESSION}}}[$__rate_interval])",
                    "{{session}} {{resource}}",
                ),
            ),
        ),
        Panel(
            "Held back by a limit",
            "Time per second in which cpu.max kept tasks waiting, or memory.high held threads back; they add up.",
            Kind.TIMESERIES,
            "percentunit",
            (
                Query(
                    f"rate(agentcgroup_session_cpu_throttled_seconds_total{{{SESSION}}}[$__rate_interval])",
                    "{{session}} CPU cap",
                ),
                Query(
                    f"rate(agentcgroup_session_memory_throttled_seconds_total{{{SESSION}}}[$__rate_interval])",
                    "{{session}} memory.high",
                ),
            ),
        ),
        Panel(
            "Processes",
            "Processes and threads in each session, and processes forked per second.",
            Kind.TIMESERIES,
            "short",
            (
                Query(f"agentcgroup_session_pids{{{SESSION}}}", "{{session}}"),
                Query(
                    f"rate(agentcgroup_session_forks_total{{{SESSION}}}[$__rate_interval])",
                    "{{session}} forks/s",
                ),
            ),
        ),
        Panel(
            "Live calls",
            "Calls of each session that are declared or running.",
            Kind.TIMESERIES,
            "short",
            (Query(f"agentcgroup_session_calls{{{SESSION}}}", "{{session}}"),),
        ),
        Panel(
            "Limits reached",
            "Throttled at memory.high, held at memory.max, killed for want of memory, forks refused at pids.max.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"rate(agentcgroup_session_memory_events_total{{{SESSION}}}[$__rate_interval])",
                    "{{session}} {{event}}",
                ),
                Query(
                    f"rate(agentcgroup_session_forks_refused_total{{{SESSION}}}[$__rate_interval])",
                    "{{session}} forks",
                ),
            ),
        ),
        Panel(
            "Sessions now",
            "Every live session with what it may use, has reserved, uses, and used at most.",
            Kind.TABLE,
            "short",
            (
                Query(
                    f"max by (instance, session, priority, state) (agentcgroup_session_info{{{SESSION}}})"
                ),
                Query(f"max by (instance, session) (agentcgroup_session_memory_limit_bytes{{{SESSION}}})"),
                Query(
                    f"max by (instance, session) (agentcgroup_session_memory_reserved_bytes{{{SESSION}}})"
                ),
                Query(f"max by (instance, session) (agentcgroup_session_memory_current_bytes{{{SESSION}}})"),
                Query(f"max by (instance, session) (agentcgroup_session_memory_peak_bytes{{{SESSION}}})"),
                Query(f"max by (instance, session) (agentcgroup_session_calls{{{SESSION}}})"),
                Query(f"max by (instance, session) (agentcgroup_session_calls_ended_total{{{SESSION}}})"),
            ),
            24,
            renamed={
                "Value #B": "limit",
                "Value #C": "reserved",
                "Value #D": "used",
                "Value #E": "peak",
                "Value #F": "live calls",
                "Value #G": "ended calls",
            },
            units={"limit": "bytes", "reserved": "bytes", "used": "bytes", "peak": "bytes"},
        ),
    ),
)
