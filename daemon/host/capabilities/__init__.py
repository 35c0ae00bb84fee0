"""What this host can do, found by trying, with what each absence costs the user and what to do about it.

Used at start, by `agentcgroupd --check-host` and by GetHost. Names are metric labels, so the list is closed.
"""

from agentcgroup.daemon.host.capabilities.probing import probe, tier, without_bpf
from agentcgroup.daemon.host.capabilities.report import report
from agentcgroup.daemon.host.capabilities.rows import NAMES, TIER_NEEDS

__all__ = ["NAMES", "TIER_NEEDS", "probe", "report", "tier", "without_bpf"]
