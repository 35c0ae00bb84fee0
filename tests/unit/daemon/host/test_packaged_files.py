"""The files that are installed beside the code: the configuration with every default, and the systemd unit."""

import importlib.resources
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest

from agentcgroup.daemon.config import Config, parse

FILES = importlib.resources.files("agentcgroup.daemon")
TOML = FILES.joinpath("agentcgroup.toml").read_text(encoding="utf-8")
UNIT = FILES.joinpath("agentcgroup.service").read_text(encoding="utf-8")


def test_the_default_configuration_changes_nothing() -> None:
    assert parse(TOML, "agentcgroup.toml") == Config()


def test_the_default_configuration_shows_every_key_and_no_other() -> None:
    table = tomllib.loads(TOML)
    wanted = {
        section: set(struct.__struct_fields__)
        for section in Config.__struct_fields__
        if isinstance(struct := getattr(Config(), section), msgspec.Struct)
    }
    assert {section: set(keys) for section, keys in table.items()} == wanted


def unit_value(key: str) -> str:
    found = re.findall(rf"^{key}=(.*)$", UNIT, re.MULTILINE)
    assert len(found) == 1, f"{key} stands {len(found)} times"
    return str(found[0])


def test_the_unit_and_the_default_configuration_mean_the_same_directories() -> None:
    assert Config().daemon.run_dir == f"/run/{unit_value('RuntimeDirectory')}"
    assert Config().daemon.state_dir == f"/var/lib/{unit_value('StateDirectory')}"


def test_the_unit_allows_as_many_descriptors_as_the_most_calls_hold() -> None:
    assert int(unit_value("LimitNOFILE")) >= 8 * Config().host.calls_max


def test_no_exit_status_that_a_retry_cannot_mend_is_retried() -> None:
    assert unit_value("Restart") == "on-failure"
    assert set(unit_value("RestartPreventExitStatus").split()) == {"2", "3", "4"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    # The binary need not be installed where the tests run; systemd looks for it too.
    unit = tmp_path / "agentcgroup.service"
    unit.write_text(re.sub(r"^(Exec\w+=)\w+", r"\1/bin/true", UNIT, flags=re.MULTILINE))
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
