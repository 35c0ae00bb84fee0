"""The row about calls: answers, verdicts, durations, peaks."""

from typing import Final

from dashboards.panel import HOST, Kind, Panel, Query, Row, quantiles

CALLS_ROW: Final = Row(
    "Calls",
    (
        Panel(
            "Answers",
            "What intents were answered.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum by (decision) (rate(agentcgroup_answers_total{{{HOST}}}[$__rate_interval]))",
                    "{{decision}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Why calls got less than asked",
            "Reasons for trimmed, queued and refused intents. Empty while everything is granted.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    "sum by (decision, reason) "
                    f'(rate(agentcgroup_answers_total{{{HOST}, decision!="granted"}}[$__rate_interval])) > 0',
                    "{{decision}}: {{reason}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Time in the queue",
            "How long calls were queued for room, by how they left the queue.",
            Kind.TIMESERIES,
            "s",
            quantiles("agentcgroup_queue_wait_seconds", "outcome"),
        ),
        Panel(
            "Held back for others",
            "What was done to calls of low priority so that others keep their memory; docs/protection.md.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum by (action) (rate(agentcgroup_protections_total{{{HOST}}}[$__rate_interval])) > 0",
                    "{{action}}",
                ),
                Query(
                    f"sum(rate(agentcgroup_marks_crossed_total{{{HOST}}}[$__rate_interval])) > 0",
                    "marks crossed",
                ),
                Query(f"sum(agentcgroup_calls_held{{{HOST}}})", "held now"),
            ),
        ),
        Panel(
            "Warnings of limits",
            "Calls and agents that were told that a limit is near, or refuses them something; docs/ladder.md.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum by (limit) (rate(agentcgroup_limit_warnings_total{{{HOST}}}[$__rate_interval])) > 0",
                    "{{limit}}",
                ),
            ),
        ),
        Panel(
            "Given back by waiting agents",
            "Cold memory of agent runtimes without calls, given back per second.",
            Kind.TIMESERIES,
            "Bps",
            (
                Query(
                    f"sum(rate(agentcgroup_idle_reclaimed_bytes_total{{{HOST}}}[$__rate_interval]))",
                    "given back",
                ),
            ),
        ),
        Panel(
            "How calls ended",
            "Verdicts, taken from kernel counters and exit status. Empty while no call ends.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum by (verdict) (rate(agentcgroup_calls_ended_total{{{HOST}}}[$__rate_interval])) > 0",
                    "{{verdict}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Duration",
            "How long ended calls had run, by the CPU class they declared.",
            Kind.TIMESERIES,
            "s",
            quantiles("agentcgroup_call_duration_seconds", "cpu_class"),
        ),
        Panel(
            "Peak memory",
            "Most memory that ended calls had used, by the CPU class they declared.",
            Kind.TIMESERIES,
            "bytes",
            quantiles("agentcgroup_call_memory_peak_bytes", "cpu_class"),
        ),
        Panel(
            "Peak memory, all calls",
            "How many calls ended with which peak.",
            Kind.HEATMAP,
            "bytes",
            (
                Query(
                    f"sum by (le) (increase(agentcgroup_call_memory_peak_bytes_bucket{{{HOST}}}[$__rate_interval]))",
                    "{{le}}",
                ),
            ),
        ),
        Panel(
            "Calls that ended well",
            "Share of calls with exit status 0, by priority of their session. Empty while no call ends.",
            Kind.TIMESERIES,
            "percentunit",
            (
                Query(
                    "sum by (priority) "
                    f'(rate(agentcgroup_calls_ended_total{{{HOST}, verdict="ok"}}[$__rate_interval])) / '
                    f"sum by (priority) (rate(agentcgroup_calls_ended_total{{{HOST}}}[$__rate_interval]))",
                    "{{priority}}",
                ),
            ),
            extra={"min": 0, "max": 1},
        ),
        Panel(
            "Killed by the daemon",
            "Calls that agentcgroupd killed, and why. Kills by the kernel are under How calls ended.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum by (reason) (rate(agentcgroup_kills_total{{{HOST}}}[$__rate_interval]))",
                    "{{reason}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Held for other sessions",
            "Threads that the kernel held because they grew into what sessions of higher priority were promised.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum by (instance) (rate(agentcgroup_guard_holds_total{{{HOST}}}[$__rate_interval]))",
                    "{{instance}} holds",
                ),
                Query(
                    f"sum by (instance) (rate(agentcgroup_guard_held_seconds_total{{{HOST}}}[$__rate_interval]))",
                    "{{instance}} seconds held per second",
                ),
            ),
        ),
        Panel(
            "Left behind, missed, left alone",
            "Processes that ended calls had left running, which are killed; commands too short for the transparent door;"
            " commands there that no call could be made for, which run in the agent's memory.",
            Kind.TIMESERIES,
            "cps",
            (
                Query(
                    f"sum by (instance) (rate(agentcgroup_leftover_processes_total{{{HOST}}}[$__rate_interval]))",
                    "{{instance}} left behind",
                ),
                Query(
                    f"sum by (instance) (rate(agentcgroup_transparent_missed_total{{{HOST}}}[$__rate_interval]))",
                    "{{instance}} missed",
                ),
                Query(
                    f"sum by (instance) (rate(agentcgroup_transparent_left_total{{{HOST}}}[$__rate_interval]))",
                    "{{instance}} left alone",
                ),
            ),
        ),
    ),
)
