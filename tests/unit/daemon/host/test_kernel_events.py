"""When the programs are loaded and when not; what they do is tested in tests/native/test_bpf_lifecycle.py."""

from pathlib import Path

import pytest

from agentcgroup.cgroups.testing import FakeCgroupTree
from agentcgroup.daemon.config import ConfigError, parse
from agentcgroup.daemon.host.capabilities import NAMES
from agentcgroup.daemon.host.capabilities.probing import _capability
from agentcgroup.daemon.host.capabilities.rows import ROWS
from agentcgroup.daemon.host.capabilities.trial import Found
from agentcgroup.daemon.host.kernel_events import open_kernel_events
from agentcgroup.daemon.host.prepare import HostUnfit
from agentcgroup.daemon.model import Capability


def host_without(missing: str) -> tuple[Capability, ...]:
    found = {name: Found(name != missing, f"tried {name}") for name in NAMES}
    return tuple(_capability(row, found) for row in ROWS)


def open_on(tmp_path: Path, configuration: str, missing: str = "") -> object:
    root = FakeCgroupTree(tmp_path).root
    return open_kernel_events(parse(configuration), host_without(missing), root)


@pytest.mark.parametrize("configuration", ['[bpf]\nenabled = "off"', "[daemon]\ndry_run = true"])
def test_switched_off_or_in_a_dry_run_nothing_is_loaded(tmp_path: Path, configuration: str) -> None:
    assert open_on(tmp_path, configuration) is None


def test_a_host_that_lacks_something_runs_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert open_on(tmp_path, "", missing="btf") is None
    assert "btf: tried btf" in caplog.text


def test_where_they_are_demanded_a_host_without_them_is_refused_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match="btf: tried btf.*agentcg check"):
        open_on(tmp_path, '[bpf]\nenabled = "on"', missing="btf")


@pytest.mark.parametrize(
    "line", ['memory_guard = "maybe"', 'hold_max = "501ms"', "hold_max = 0", 'hold_total = "100ms"']
)
def test_a_guard_that_cannot_be_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=r"bpf\."):
        parse(f"[bpf]\n{line}")


@pytest.mark.parametrize("line", ['enabled = "maybe"', 'ring = "3K"', 'ring = "1000000"', "ring = 0"])
def test_a_setting_that_makes_no_sense_is_refused(line: str) -> None:
    with pytest.raises(ConfigError, match=r"bpf\."):
        parse(f"[bpf]\n{line}")
