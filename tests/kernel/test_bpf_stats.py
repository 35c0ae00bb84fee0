"""What this kernel's verifier makes of every program, kept with the build: all load, and none has outgrown its bound."""

import os
from pathlib import Path

import pytest

from agentcgroup.bpf import features
from bench import bpf_stats

pytestmark = pytest.mark.kernel

# The function that throttles has one of two names, by kernel; see bpf/compat.bpf.h.
_EITHER = ({"on_throttle_begin", "on_throttle_end"}, {"on_older_throttle_begin", "on_older_throttle_end"})


def test_every_program_loads_and_stays_within_its_bound() -> None:
    measured = bpf_stats.measure_all()
    # Set by tests/run.py, which keeps the figures of each kernel.
    out = os.environ.get("AGENTCG_BPF_FIGURES")
    if out:
        bpf_stats.write(measured, Path(out))
    assert bpf_stats.faults(measured, has_sched_ext=features.sched_ext().is_available) == []
    (lifecycle,) = (one for one in measured if one.object == "lifecycle")
    assert {line.partition(":")[0] for line in lifecycle.missing} in _EITHER
