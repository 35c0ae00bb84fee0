"""The figures of a launch benchmark for a terminal, and whether they reach what we promise."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# What the product promises. In the guest everything is emulated, so only the comparison holds there.
MOST_ADDED_P50_MS: Final = 0.8
MOST_ADDED_P99_MS: Final = 2.0
LEAST_TIMES_CHEAPER: Final = 20.0
MOST_RSS_MB: Final = 60.0
MOST_CPU_PERCENT: Final = 0.5
CALLS_IN_FLIGHT: Final = 1000
LEAST_RATE_PER_S: Final = 200.0


@dataclass(frozen=True, slots=True)
class Target:
    """One promise and what came of it."""

    name: str
    wanted: str
    got: float | None  # None: nothing came of it
    met: bool


def targets(result: Mapping[str, Any]) -> list[Target]:
    """The promises that this result can be held against: only those that were measured where they hold."""
    found: list[Target] = []
    times = result["spaced"]["systemd_run_adds_times_agentcg"]
    for part in ("spaced", "back_to_back"):
        cost = result[part]["added_to_bare"]["agentcg"]
        if times is not None:
            part_times = result[part]["systemd_run_adds_times_agentcg"]
            found.append(
                _least(f"{part}: systemd-run adds, times what agentcg adds", LEAST_TIMES_CHEAPER, part_times)
            )
        else:
            found.append(_most(f"{part}: agentcg adds at p50, ms", MOST_ADDED_P50_MS, cost["p50_ms"]))
            found.append(_most(f"{part}: agentcg adds at p99, ms", MOST_ADDED_P99_MS, cost["p99_ms"]))
    if "at_rest" in result:
        found.append(_most("RSS at rest, MB", MOST_RSS_MB, result["at_rest"]["rss_mb"]))
        found.append(_most("CPU at rest, percent", MOST_CPU_PERCENT, result["at_rest"]["cpu_percent"]))
    if "in_flight" in result:
        found.append(_least("calls in flight", CALLS_IN_FLIGHT, result["in_flight"]["cgroups"]))
    if "rate" in result and times is None:
        rate = result["rate"]
        is_met = rate["failures"] == 0 and rate["achieved_per_s"] >= 0.99 * LEAST_RATE_PER_S
        found.append(
            Target(
                "launches a second, sustained", f">= {LEAST_RATE_PER_S:g}", rate["achieved_per_s"], is_met
            )
        )
    return found


def _most(name: str, limit: float, got: float) -> Target:
    return Target(name, f"<= {limit:g}", got, got <= limit)


def _least(name: str, limit: float, got: float) -> Target:
    return Target(name, f">= {limit:g}", got, got >= limit)


def print_report(result: Mapping[str, Any]) -> None:
    """Everything worth reading, as text."""
    enforced = (
        "limits enforced" if result["is_enforced"] else "limits NOT enforced: " + "; ".join(result["notes"])
    )
    options = ", ".join(result["cgroup_mount_options"]) or "none"
    print(f"kernel {result['kernel']}, {result['cpus']} CPUs, {enforced}; cgroup2 mount options: {options}")
    for part in ("spaced", "back_to_back"):
        _print_latency(part, result[part])
    if "rate" in result:
        rate = result["rate"]
        print(
            f"\nrate    {rate['achieved_per_s']} launches/s for {rate['seconds']} s, {rate['failures']} failed,"
            f" at most {rate['most_at_once']} at once, p99 {rate['from_due_to_end']['p99_ms']} ms,"
            f" daemon CPU {rate['daemon_cpu_ms_per_launch']} ms each, drained in {rate['drained_s']} s"
        )
        flood = result["flood"]
        print(
            f"flood   {flood['per_s']} launches/s with {flood['workers']} at once, {flood['failures']} failed,"
            f" p50 {flood['each']['p50_ms']} ms, daemon CPU {flood['daemon_cpu_ms_per_launch']} ms each,"
            f" drained in {flood['drained_s']} s"
        )
        held = result["in_flight"]
        print(
            f"at once {held['cgroups']} of {held['asked']} calls, all ready in {held['all_ready_s']} s,"
            f" RSS {held['rss_before_mb']} -> {held['rss_during_mb']} -> {held['rss_after_mb']} MB,"
            f" drained in {held['drained_s']} s, {held['failures']} failed"
        )
        rest = result["at_rest"]
        print(
            f"at rest {rest['rss_mb']} MB RSS, {rest['cpu_percent']} % CPU, {rest['wakeups_per_s']} wake-ups/s"
        )
    print()
    for target in result["targets"]:
        print(
            f"  {'met   ' if target['met'] else 'MISSED'}  {target['name']}: {target['got']} (wanted {target['wanted']})"
        )


def _print_latency(title: str, part: Mapping[str, Any]) -> None:
    print(
        f"\n{title}, {part['pause_ms']:g} ms between two starts; {part['prepared']} calls were prepared,"
        f" {part['unprepared']} were not"
    )
    print(f"  {'way':<14}{'n':>6}{'p50':>9}{'p90':>9}{'p99':>9}   ms{'+p50':>9}{'+p99':>9}{'x':>7}")
    for name, way in part["ways"].items():
        line = (
            f"  {name:<14}{way['n']:>6}{way['p50_ms']:>9.3f}{way['p90_ms']:>9.3f}{way['p99_ms']:>9.3f}     "
        )
        cost = part["added_to_bare"].get(name)
        if cost is not None:
            line += f"{cost['p50_ms']:>9.3f}{cost['p99_ms']:>9.3f}{cost['ratio_p50']:>7.2f}"
        print(line)
