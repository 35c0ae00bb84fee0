"""Facts about this kernel's BPF, each found by trying the thing itself, never by a version.

A fact costs one or two system calls, leaves nothing loaded and never raises: what the kernel answers *is*
the fact. Sources: bpf(2), include/uapi/linux/bpf.h, Documentation/scheduler/sched-ext.rst.
"""

import ctypes
import errno
import mmap
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentcgroup.bpf import libbpf as loader

__all__ = [
    "BpfFact",
    "attachable",
    "fentry",
    "libbpf",
    "lsm",
    "program_load",
    "ring_buffer",
    "sched_ext",
    "task_work",
    "tracing",
    "type_information",
]

# bpf(2) has no wrapper in the C library.
_SYSCALL_NUMBERS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}

_CMD_MAP_CREATE: Final = 0
_CMD_PROG_LOAD: Final = 5
_MAP_TYPE_RINGBUF: Final = 27
_PROG_TYPE_RAW_TRACEPOINT: Final = 17
_PROG_TYPE_TRACING: Final = 26
_ATTACH_TRACE_RAW_TP: Final = 23
_ATTACH_TRACE_FENTRY: Final = 24
_ATTACH_TRACE_FEXIT: Final = 25
_ATTACH_OF_SECTION: Final = {
    "tp_btf": _ATTACH_TRACE_RAW_TP,
    "fentry": _ATTACH_TRACE_FENTRY,
    "fexit": _ATTACH_TRACE_FEXIT,
}

# r0 = 0; exit.
_RETURN_ZERO: Final = bytes.fromhex("b700000000000000 9500000000000000")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class BpfFact:
    """Whether something works here, and what was found or what the kernel answered."""

    is_available: bool
    detail: str


class _ProgramLoad(ctypes.Structure):
    """The part of union bpf_attr that BPF_PROG_LOAD reads, up to attach_prog_fd."""

    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
        ("prog_btf_fd", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("func_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("line_info_cnt", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint64),
    ]


class _MapCreate(ctypes.Structure):
    """The part of union bpf_attr that BPF_MAP_CREATE reads for a simple map."""

    _fields_ = [
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
    ]


def _bpf(command: int, attributes: ctypes.Structure) -> int:
    """One bpf(2) call. Returns the descriptor; raises OSError."""
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) is not known on {platform.machine()}")
    fd: int = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_long(command),
        ctypes.byref(attributes),
        ctypes.c_long(ctypes.sizeof(attributes)),
    )
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def _answer(what: str, error: OSError) -> BpfFact:
    name = errno.errorcode.get(error.errno or 0, "error")
    return BpfFact(False, f"{what}: {error.strerror} [{name}]")


def _try_program(what: str, program_type: int, attach_type: int, btf_id: int = 0) -> BpfFact:
    code = ctypes.create_string_buffer(_RETURN_ZERO, len(_RETURN_ZERO))
    gpl = ctypes.create_string_buffer(b"GPL")
    attributes = _ProgramLoad(
        prog_type=program_type,
        insn_cnt=len(_RETURN_ZERO) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(gpl),
        prog_name=b"agentcg_probe",
        expected_attach_type=attach_type,
        attach_btf_id=btf_id,
    )
    try:
        os.close(_bpf(_CMD_PROG_LOAD, attributes))
    except OSError as error:
        return _answer(f"loading {what} failed", error)
    return BpfFact(True, f"{what} loads")


def program_load() -> BpfFact:
    """Whether this process may load a BPF program that takes CAP_BPF and CAP_PERFMON, past any filter of
    bpf(2).
    """
    return _try_program("a raw tracepoint program", _PROG_TYPE_RAW_TRACEPOINT, 0)


def type_information(path: Path = Path("/sys/kernel/btf/vmlinux")) -> BpfFact:
    """Whether the kernel describes its own types (CONFIG_DEBUG_INFO_BTF); no program is portable without."""
    try:
        size = path.stat().st_size
    except OSError as error:
        return _answer(str(path), error)
    return BpfFact(True, f"{path}, {size >> 10} KiB")


def libbpf() -> BpfFact:
    """Whether libbpf.so.1 can be loaded, and which release it is."""
    try:
        version = loader.version()
    except (OSError, AttributeError) as error:
        return BpfFact(False, str(error))
    return BpfFact(True, f"libbpf.so.1, {version}")


def _try_tracing(what: str, name: str, attach_type: int) -> BpfFact:
    try:
        btf_id = loader.attach_target_id(name, attach_type)
    except OSError as error:
        # A library that cannot be loaded is an OSError without an errno.
        return BpfFact(False, f"{what}: {error.strerror or error}")
    return _try_program(what, _PROG_TYPE_TRACING, attach_type, btf_id)


def tracing() -> BpfFact:
    """Whether a program on a tracepoint with types (tp_btf) loads: what tells of exec, exit and fork."""
    return _try_tracing("tp_btf/sched_process_exec", "sched_process_exec", _ATTACH_TRACE_RAW_TP)


def fentry() -> BpfFact:
    """Whether a program on the entry of a kernel function loads: what sees memory being charged."""
    return _try_tracing("fentry/page_counter_try_charge", "page_counter_try_charge", _ATTACH_TRACE_FENTRY)


def task_work() -> BpfFact:
    """Whether a program can be called back in a task on its way back to user mode (kernel 6.18)."""
    detail = ""
    # The first since 7.0.
    for name in ("bpf_task_work_schedule_resume", "bpf_task_work_schedule_resume_impl"):
        try:
            loader.attach_target_id(name, _ATTACH_TRACE_FENTRY)
        except OSError as error:
            detail = f"{name}: {error.strerror or error}"
        else:
            return BpfFact(True, f"the kernel has {name}")
    return BpfFact(False, detail)


def attachable(section: str) -> BpfFact:
    """Whether a program for `section`, like "fentry/oom_kill_process", loads on this kernel.

    Other sections than tp_btf, fentry and fexit are taken to be attachable: their load tells.
    """
    kind, _, name = section.partition("/")
    attach_type = _ATTACH_OF_SECTION.get(kind)
    if attach_type is None:
        return BpfFact(True, f"{section} is not tried beforehand")
    return _try_tracing(section, name, attach_type)


def ring_buffer() -> BpfFact:
    """Whether BPF ring buffers exist (kernel 5.8) and may be made."""
    try:
        os.close(_bpf(_CMD_MAP_CREATE, _MapCreate(_MAP_TYPE_RINGBUF, 0, 0, mmap.PAGESIZE)))
    except OSError as error:
        return _answer("making a ring buffer failed", error)
    return BpfFact(True, "ring buffers can be made")


def lsm(path: Path = Path("/sys/kernel/security/lsm")) -> BpfFact:
    """Whether BPF is among the active security modules (kernel parameter ``lsm=``)."""
    try:
        active = path.read_text(encoding="ascii").strip()
    except OSError as error:
        return _answer(str(path), error)
    return BpfFact("bpf" in active.split(","), f"active: {active}")


def sched_ext(directory: Path = Path("/sys/kernel/sched_ext")) -> BpfFact:
    """Whether the kernel takes schedulers (CONFIG_SCHED_CLASS_EXT), and whether one is loaded already.

    A loaded scheduler of somebody else may ignore cpu.weight and cpu.max, so its name is part of the detail.
    """
    try:
        state = (directory / "state").read_text(encoding="ascii").strip()
    except OSError:
        return BpfFact(False, f"{directory} is missing: this kernel is built without CONFIG_SCHED_CLASS_EXT")
    try:
        scheduler = (directory / "root" / "ops").read_text(encoding="utf-8").strip()
    except OSError:
        return BpfFact(True, f"{state}, no scheduler loaded")
    return BpfFact(True, f"{state}, scheduler {scheduler} loaded")
