"""Every interface file: text the kernel prints, the value it means, text it never prints, and what is written."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from agentcgroup.cgroups import files
from agentcgroup.cgroups.cgroup import Cgroup
from agentcgroup.cgroups.errors import BadFormat, CgroupGone
from agentcgroup.cgroups.files import InterfaceFile
from agentcgroup.cgroups.values import (
    MAX,
    CgroupEvents,
    CgroupStat,
    CgroupStatLocal,
    CgroupType,
    CpuMax,
    CpusetPartition,
    CpuStat,
    CpuStatLocal,
    DeviceNumber,
    DeviceSettings,
    IoLatency,
    IoMax,
    IoPriorityClass,
    IoStat,
    IoWeight,
    MemoryEvents,
    MemoryNumaStat,
    MemoryStat,
    MemorySwapEvents,
    PartitionKind,
    PidsEvents,
    Pressure,
    PressureLine,
    SubsystemCount,
)


@dataclass(frozen=True)
class Case:
    file: InterfaceFile[Any]
    text: str
    value: object
    malformed: str
    written: str | None = None
    """What writing ``value`` gives, for a writable file, when it is not ``text`` without its newline."""


PRESSURE_TEXT = (
    "some avg10=1.23 avg60=0.50 avg300=0.00 total=492652\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
)
PRESSURE = Pressure(PressureLine(1.23, 0.5, 0.0, 492652), PressureLine(0.0, 0.0, 0.0, 7))
BAD_PRESSURE = "some avg10=1.23 avg60=0.50 avg300=0.00\n"
EVENTS_TEXT = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nnewer_than_us 9\n"
EVENTS = MemoryEvents(1, 2, 3, 4, 5, 6, None)
SDA = DeviceNumber(8, 16)

CASES = [
    Case(files.CGROUP_TYPE, "domain threaded\n", CgroupType.DOMAIN_THREADED, "kingdom\n"),
    Case(files.CGROUP_PROCS, "12\n7\n12\n", (12, 7, 12), "12\nseven\n", "12\n7\n12"),
    Case(files.CGROUP_THREADS, "", (), "1 2 three\n", ""),
    Case(files.CGROUP_CONTROLLERS, "cpu perf_event\n", frozenset({"cpu", "perf_event"}), "cpu; memory\n"),
    Case(
        files.CGROUP_SUBTREE_CONTROL, "memory cpu\n", frozenset({"cpu", "memory"}), "+cpu\n", "+cpu +memory"
    ),
    Case(files.CGROUP_EVENTS, "populated 1\nfrozen 0\n", CgroupEvents(True, False), "frozen 1\n"),
    Case(files.CGROUP_MAX_DESCENDANTS, "max\n", MAX, "-1\n"),
    Case(files.CGROUP_MAX_DEPTH, "4\n", 4, "four\n"),
    Case(
        files.CGROUP_STAT,
        "nr_descendants 3\nnr_subsys_memory 2\nnr_dying_descendants 1\nnr_dying_subsys_memory 5\n",
        CgroupStat(3, 1, (SubsystemCount("memory", 2, 5),)),
        "nr_descendants\n",
    ),
    Case(files.CGROUP_STAT_LOCAL, "frozen_usec 17\n", CgroupStatLocal(17), "frozen_usec 1.5\n"),
    Case(files.CGROUP_FREEZE, "1\n", True, "2\n"),
    Case(files.CGROUP_PRESSURE, "0\n", False, "\n"),
    Case(
        files.IRQ_PRESSURE,
        PRESSURE_TEXT.split("\n")[1] + "\n",
        Pressure(None, PRESSURE.full),
        "full avg10\n",
    ),
    Case(
        files.CPU_STAT,
        "usage_usec 10\nuser_usec 6\nsystem_usec 4\nnice_usec 0\ncore_sched.force_idle_usec 1\n"
        "nr_periods 2\nnr_throttled 1\nthrottled_usec 8\nnr_bursts 0\nburst_usec 0\n",
        CpuStat(10, 6, 4, 0, 1, 2, 1, 8, 0, 0),
        "usage_usec ten\n",
    ),
    Case(files.CPU_STAT_LOCAL, "throttled_usec 3\n", CpuStatLocal(3), "throttled_usec -3\n"),
    Case(files.CPU_WEIGHT, "100\n", 100, "max\n"),
    Case(files.CPU_WEIGHT_NICE, "-20\n", -20, "--20\n"),
    Case(files.CPU_MAX, "150000 100000\n", CpuMax(150000, 100000), "150000\n"),
    Case(files.CPU_MAX_BURST, "5000\n", 5000, "5 000\n"),
    Case(files.CPU_IDLE, "0\n", False, "no\n"),
    Case(files.CPU_UCLAMP_MIN, "12.34\n", 12.34, "12.3.4\n"),
    Case(files.CPU_UCLAMP_MAX, "max\n", MAX, "maximum\n"),
    Case(files.CPU_PRESSURE, PRESSURE_TEXT, PRESSURE, BAD_PRESSURE),
    Case(files.MEMORY_CURRENT, "1048576\n", 1048576, "1M\n"),
    Case(files.MEMORY_MIN, "0\n", 0, "0x10\n"),
    Case(files.MEMORY_LOW, "4096\n", 4096, "4_096\n"),
    Case(files.MEMORY_HIGH, "max\n", MAX, "MAX\n"),
    Case(files.MEMORY_MAX, "9223372036854771712\n", 9223372036854771712, "9e18\n"),
    Case(files.MEMORY_PEAK, "5\n", 5, "\n"),
    Case(files.MEMORY_OOM_GROUP, "1\n", True, "yes\n"),
    Case(files.MEMORY_EVENTS, EVENTS_TEXT, EVENTS, "low 1\nhigh\n"),
    Case(files.MEMORY_EVENTS_LOCAL, EVENTS_TEXT, EVENTS, "oom_kill lots\n"),
    Case(files.MEMORY_STAT, "anon 7\npgfault 8\n", MemoryStat(anon=7, pgfault=8), "anon: 7\nanon\n"),
    Case(
        files.MEMORY_NUMA_STAT,
        "anon N0=7 N1=0\nfile N0=1\n",
        (MemoryNumaStat("anon", ((0, 7), (1, 0))), MemoryNumaStat("file", ((0, 1),))),
        "anon N0\n",
    ),
    Case(files.MEMORY_SWAP_CURRENT, "0\n", 0, "none\n"),
    Case(files.MEMORY_SWAP_HIGH, "max\n", MAX, "\n"),
    Case(files.MEMORY_SWAP_MAX, "0\n", 0, "0 0\n"),
    Case(files.MEMORY_SWAP_PEAK, "12288\n", 12288, "12288 bytes\n"),
    Case(files.MEMORY_SWAP_EVENTS, "high 0\nmax 1\nfail 2\n", MemorySwapEvents(0, 1, 2), "fail two\n"),
    Case(files.MEMORY_ZSWAP_CURRENT, "4096\n", 4096, "-4096\n"),
    Case(files.MEMORY_ZSWAP_MAX, "max\n", MAX, "maxi\n"),
    Case(files.MEMORY_ZSWAP_WRITEBACK, "1\n", True, "on\n"),
    Case(files.MEMORY_PRESSURE, PRESSURE_TEXT, PRESSURE, "some\n"),
    Case(
        files.IO_STAT,
        "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7 new=?\n8:0 \n(unknown) rios=4\n",
        (IoStat(SDA, 1, 2, 3, 4, 5, 6, 7), IoStat(DeviceNumber(8, 0)), IoStat(None, rios=4)),
        "sda rbytes=1\n",
    ),
    Case(
        files.IO_MAX,
        "8:16 rbps=2097152 wbps=max riops=max wiops=120\n",
        (IoMax(SDA, 2097152, MAX, MAX, 120),),
        "8:16 rbps\n",
    ),
    Case(
        files.IO_WEIGHT,
        "default 100\n8:16 200\n(unknown) 5\n",
        (IoWeight(None, 100), IoWeight(SDA, 200)),
        "default\n",
        "default 100\n8:16 200",
    ),
    Case(files.IO_BFQ_WEIGHT, "default 50\n", (IoWeight(None, 50),), "8:16:2 7\n"),
    Case(files.IO_LATENCY, "8:16 target=75000\n", (IoLatency(SDA, 75000),), "8:16 75000\n"),
    Case(files.IO_PRIO_CLASS, "restrict-to-be\n", IoPriorityClass.RESTRICT_TO_BE, "best\n"),
    Case(
        files.IO_COST_QOS,
        "8:16 enable=1 ctrl=auto\n",
        (DeviceSettings(SDA, (("enable", "1"), ("ctrl", "auto"))),),
        "8:16 enable\n",
    ),
    Case(
        files.IO_COST_MODEL, "8:16 ctrl=user\n", (DeviceSettings(SDA, (("ctrl", "user"),)),), "8 ctrl=user\n"
    ),
    Case(files.IO_PRESSURE, PRESSURE_TEXT, PRESSURE, "full total=1\n"),
    Case(files.PIDS_CURRENT, "3\n", 3, "3.0\n"),
    Case(files.PIDS_MAX, "max\n", MAX, "all\n"),
    Case(files.PIDS_PEAK, "9\n", 9, "nine\n"),
    Case(files.PIDS_EVENTS, "max 4\n", PidsEvents(4), "max max\n"),
    Case(files.PIDS_EVENTS_LOCAL, "max 0\n", PidsEvents(0), "max\n"),
    Case(files.CPUSET_CPUS, "0-2,6\n", frozenset({0, 1, 2, 6}), "2-0\n"),
    Case(files.CPUSET_CPUS_EFFECTIVE, "0\n", frozenset({0}), "0,\n"),
    Case(files.CPUSET_CPUS_EXCLUSIVE, "\n", frozenset(), "a-b\n", "\n"),
    Case(files.CPUSET_CPUS_EXCLUSIVE_EFFECTIVE, "\n", frozenset(), "1-\n"),
    Case(files.CPUSET_CPUS_ISOLATED, "3-4\n", frozenset({3, 4}), "-3\n"),
    Case(
        files.CPUSET_CPUS_PARTITION,
        "root invalid (Cpu list in cpuset.cpus not exclusive)\n",
        CpusetPartition(PartitionKind.ROOT, "Cpu list in cpuset.cpus not exclusive"),
        "stem\n",
        "root",
    ),
    Case(files.CPUSET_MEMS, "0\n", frozenset({0}), "N0\n"),
    Case(files.CPUSET_MEMS_EFFECTIVE, "0-1\n", frozenset({0, 1}), "0..1\n"),
]


def named(case: Case) -> str:
    return case.file.name


@pytest.fixture
def cgroup(tmp_path: Path) -> Cgroup:
    (tmp_path / "cgroup.procs").touch()
    return Cgroup.open(tmp_path, verify=False)


def test_every_readable_file_has_a_case() -> None:
    readable = [file for file in files.ALL if file.readable]
    assert {case.file.name for case in CASES} == {file.name for file in readable}
    assert len(readable) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_what_the_kernel_prints_becomes_a_value(case: Case, cgroup: Cgroup) -> None:
    (Path(cgroup.path) / case.file.name).write_text(case.text)
    assert cgroup.read(case.file) == case.value


@pytest.mark.parametrize("case", CASES, ids=named)
def test_text_the_kernel_never_prints_is_an_error_with_the_path(case: Case, cgroup: Cgroup) -> None:
    path = Path(cgroup.path) / case.file.name
    path.write_text(case.malformed)
    with pytest.raises(BadFormat) as caught:
        cgroup.read(case.file)
    assert caught.value.path == str(path)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_missing_file_is_none(case: Case, cgroup: Cgroup) -> None:
    if case.file is files.CGROUP_PROCS:
        # By this file alone a cgroup is known to exist.
        (Path(cgroup.path) / "cgroup.procs").unlink()
        with pytest.raises(CgroupGone):
            cgroup.read(case.file)
        return
    assert cgroup.read(case.file) is None


@pytest.mark.parametrize("case", [case for case in CASES if case.file.writable], ids=named)
def test_a_value_is_written_as_the_kernel_takes_it(case: Case) -> None:
    expected = case.text.removesuffix("\n") if case.written is None else case.written
    assert case.file.format(case.value) == expected


@pytest.mark.parametrize("case", [case for case in CASES if not case.file.writable], ids=named)
def test_a_read_only_file_takes_no_value(case: Case, cgroup: Cgroup) -> None:
    with pytest.raises(BadFormat):
        cgroup.write_if_present(case.file, case.value)


@pytest.mark.parametrize("file", [files.CGROUP_KILL, files.MEMORY_RECLAIM], ids=lambda file: file.name)
def test_a_write_only_file_gives_no_value(file: InterfaceFile[Any], cgroup: Cgroup) -> None:
    (Path(cgroup.path) / file.name).write_text("1\n")
    with pytest.raises(BadFormat, match="only be written"):
        cgroup.read(file)
    with pytest.raises(ValueError, match="no value"):
        file.parse("1\n")


@pytest.mark.parametrize(
    ("file", "value"),
    [
        (files.MEMORY_MAX, -1),
        (files.MEMORY_MAX, 1.5),
        (files.MEMORY_MAX, True),
        (files.MEMORY_MAX, "max"),
        (files.MEMORY_OOM_GROUP, 1),
        (files.CPU_MAX, CpuMax(-5, 100000)),
        (files.CPU_WEIGHT, MAX),
        (files.CPU_WEIGHT_NICE, 1.0),
        (files.CPU_UCLAMP_MIN, 100.5),
        (files.CGROUP_KILL, False),
        (files.CGROUP_PROCS, (0,)),
        (files.CGROUP_SUBTREE_CONTROL, frozenset({"cpu -memory"})),
        (files.CPUSET_CPUS, frozenset({-1})),
        (files.IO_MAX, (IoMax(SDA),)),
        (files.IO_WEIGHT, (IoWeight(None, None),)),
    ],
    ids=lambda one: one.name if isinstance(one, InterfaceFile) else repr(one),
)
def test_a_value_that_no_kernel_takes_never_reaches_the_file(
    file: InterfaceFile[Any], value: object, cgroup: Cgroup
) -> None:
    path = Path(cgroup.path) / file.name
    path.write_text("untouched")
    with pytest.raises(BadFormat) as caught:
        cgroup.write(file, value)
    assert caught.value.path == str(path)
    assert path.read_text() == "untouched"


def test_a_counter_this_kernel_does_not_print_is_none_and_not_zero() -> None:
    events = files.MEMORY_EVENTS.parse("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n")
    assert events.oom_kill == 0
    assert events.oom_group_kill is None
    assert files.CPU_STAT.parse("usage_usec 1\nuser_usec 1\nsystem_usec 0\n").nr_throttled is None
    assert files.CPU_STAT_LOCAL.parse("") == CpuStatLocal(None)


def test_a_line_that_is_no_number_costs_none_of_the_others() -> None:
    text = "low 1\nhigh 2\nmax 3\n"
    assert files.MEMORY_EVENTS.parse(text) == MemoryEvents(1, 2, 3)
    assert files.MEMORY_EVENTS.parse(text + "policy tightest\n") == MemoryEvents(1, 2, 3)


def test_every_line_of_a_large_memory_stat_is_found() -> None:
    names = [one.name for one in fields(MemoryStat)]
    stat = files.MEMORY_STAT.parse("".join(f"{name} {number}\n" for number, name in enumerate(names)))
    assert [getattr(stat, name) for name in names] == list(range(len(names)))


def test_one_number_of_memory_stat_is_found_alone() -> None:
    parse = files.MEMORY_STAT_INACTIVE_FILE.parse
    assert parse("anon 1\nworkingset_inactive_file 2\ninactive_file 30\nactive_file 4\n") == 30
    assert parse("inactive_file_of_tomorrow 1\n") is None


def test_files_are_found_by_their_kernel_name() -> None:
    assert files.by_name("memory.max") is files.MEMORY_MAX
    assert files.by_name("memory.maximum") is None
    assert len(files.BY_NAME) == len(files.ALL)
    for file in files.ALL:
        prefix = file.name.split(".")[0]
        assert file.controller in (None, prefix)


def test_one_write_for_every_device() -> None:
    limits = (IoMax(SDA, rbps=1), IoMax(DeviceNumber(8, 0), wiops=MAX))
    assert files.IO_MAX.format(limits) == "8:16 rbps=1\n8:0 wiops=max"
    assert files.IO_MAX.is_line_by_line
    assert files.IO_WEIGHT.format((IoWeight(SDA, None),)) == "8:16 default"
