"""The memory program where the kernel may refuse it: it is in, or says why it is not."""

import os

import pytest

from agentcgroup.bpf import features
from agentcgroup.bpf.libbpf import BpfError
from agentcgroup.bpf.memory import MemoryProgram
from tests import bpf_objects

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="loading programs needs root"),
    pytest.mark.skipif(not features.program_load().is_available, reason="bpf(2) loads nothing here"),
]


def test_it_is_attached_or_says_which_function_cannot_be_traced_and_leaves_nothing() -> None:
    before = bpf_objects.in_kernel()
    if features.fentry().is_available:
        program = MemoryProgram(accounts_max=16)
        assert "on_charge" in program.attached
        program.open_account(1)
        assert program.growth() == {}
        program.close()
    else:
        with pytest.raises(BpfError, match="page_counter_try_charge"):
            MemoryProgram(accounts_max=16)
    assert not {one for one in bpf_objects.of_process(os.getpid()) if one not in before}
