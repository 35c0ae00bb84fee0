"""One object of BPF programs: opened, its knobs set, loaded, attached and closed, as one context manager.

Nothing is pinned: programs, links and maps are gone with the process that loaded them, however it ends.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

from agentcgroup.bpf import btf, features, libbpf
from agentcgroup.bpf.libbpf import BpfError, Handle
from agentcgroup.bpf.maps import ArrayMap, HashMap
from agentcgroup.bpf.program_info import program_info
from agentcgroup.bpf.ringbuf import RingBuffer
from agentcgroup.bpf.shared_maps import SharedMaps

__all__ = ["YOUNG", "Absent", "ProgramStatistics", "Programs", "object_path"]

_RODATA: Final = ".rodata"
# Attached to nothing; see `run`.
_ON_DEMAND: Final = "syscall"
# Verifier log: level 4 is the statistics alone, one line; but 6.18 filled 64 KiB for the scheduler, and failed the load.
_LOG_STATISTICS: Final = 4
_LOG_BYTES: Final = 4 << 20
# A constant that is 1 in objects that use interfaces of the kernel which still change; see holds_return.bpf.h.
YOUNG: Final = "uses_task_work"
_V = TypeVar("_V", bound=ctypes.Structure)


class _Word(ctypes.Structure):
    _fields_ = [("value", ctypes.c_uint32)]


@dataclass(frozen=True, slots=True)
class Absent:
    """A program that this kernel does not take, and what it answered; or what programs may use, of no section."""

    name: str
    section: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProgramStatistics:
    """What the verifier had to do for a program. `verified_instructions` 0: this kernel (before 5.16) does not say."""

    name: str
    section: str
    instructions: int
    verified_instructions: int
    jited_bytes: int
    # "processed 312 insns (limit 1000000) max_states_per_insn 1 total_states 22 peak_states 22 mark_read 5"
    verifier: str


def object_path(name: str) -> Path:
    """Where the object of `name`.bpf.c lies in the installed package."""
    return Path(__file__).parent / f"{name}.bpf.o"


class Programs:
    """The programs of one object file. Use as a context manager, or call `close`.

    `optional` names sections, or their prefixes ("fentry/"), whose programs may be missing: each is tried first, and
    left out with its reason in `absent`. Any other failure raises BpfError and leaves nothing loaded.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        knobs: Mapping[str, ctypes.Structure] | None = None,
        sizes: Mapping[str, int] | None = None,
        optional: tuple[str, ...] = (),
        shared: SharedMaps | None = None,
        with_statistics: bool = False,
    ) -> None:
        """`knobs`: constants of the object (.rodata) by name. `sizes`: max_entries of maps, of a ring buffer its bytes.

        `shared`: maps that this object has in common with others.
        """
        self.path: Final = os.fspath(path)
        self.absent: tuple[Absent, ...] = ()
        self._optional = optional
        self._links: dict[str, Handle] = {}
        self._rings: list[RingBuffer] = []
        self._logs: dict[str, ctypes.Array[ctypes.c_char]] = {}
        self._object: Handle | None = libbpf.open_object(self.path)
        knobs, sizes = knobs or {}, sizes or {}
        try:
            has_young = self._has_constant(YOUNG)
            try:
                self._load(knobs, sizes, shared, with_statistics)
            except BpfError as error:
                if not has_young:
                    raise
                libbpf.close_object(self._open())
                self._object = libbpf.open_object(self.path)
                self._load({**knobs, YOUNG: _Word(0)}, sizes, shared, with_statistics)
                self.absent += (Absent(YOUNG, "", str(error)),)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Programs":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def attach(self) -> None:
        """Attaches every loaded program. What is optional and cannot be attached is added to `absent`."""
        for name, section, program in self._programs():
            if not libbpf.autoload(program) or name in self._links or section == _ON_DEMAND:
                continue
            try:
                self._links[name] = libbpf.attach(program, f"{name} to {section}")
            except BpfError as error:
                if not section.startswith(self._optional or ("\0",)):
                    raise
                self.absent += (Absent(name, section, str(error)),)

    def detach(self) -> None:
        """Detaches every program; the maps stay readable."""
        while self._links:
            _, link = self._links.popitem()
            libbpf.destroy_link(link)

    def close(self) -> None:
        """Detaches, closes rings and maps, unloads. Safe to call twice."""
        self.detach()
        for ring in self._rings:
            ring.close()
        self._rings.clear()
        if self._object is not None:
            libbpf.close_object(self._object)
            self._object = None

    # ---- what is loaded

    @property
    def attached(self) -> tuple[str, ...]:
        """Names of the programs that run now."""
        return tuple(sorted(self._links))

    def hash_map(self, name: str, value: type[_V]) -> HashMap[_V]:
        """The hash map `name`, whose values are `value`s and whose keys are 64 bits."""
        return HashMap(libbpf.map_fd(libbpf.find_map(self._open(), name)), value)

    def array_map(self, name: str, value: type[_V]) -> ArrayMap[_V]:
        return ArrayMap(libbpf.map_fd(libbpf.find_map(self._open(), name)), value)

    def map_fd(self, name: str) -> int:
        """The descriptor of a map whose keys are no numbers; it stays the object's."""
        return libbpf.map_fd(libbpf.find_map(self._open(), name))

    def ring(self, name: str, receive: Callable[[bytes], None]) -> RingBuffer:
        """A reader of the ring buffer `name`; closed with the programs."""
        ring = RingBuffer(libbpf.map_fd(libbpf.find_map(self._open(), name)), receive)
        self._rings.append(ring)
        return ring

    def run(self, name: str, context: ctypes.Structure | None = None) -> int:
        """Runs the loaded program `name`, of section "syscall", once, on `context`; what it returned. Raises BpfError."""
        program = next(program for other, _, program in self._programs() if other == name)
        return libbpf.run_program(libbpf.program_fd(program), context)

    def recursion_misses(self) -> int:
        """How often a program did not run because it was running on that CPU already: events that nobody saw."""
        return sum(
            program_info(libbpf.program_fd(program)).recursion_misses
            for _, _, program in self._programs()
            if libbpf.autoload(program)
        )

    def statistics(self) -> tuple[ProgramStatistics, ...]:
        """Of every loaded program, in the order of the source. Needs `with_statistics`."""
        found = []
        for name, section, program in self._programs():
            if not libbpf.autoload(program):
                continue
            info = program_info(libbpf.program_fd(program))
            said = self._logs[name].value.decode(errors="replace").strip() if name in self._logs else ""
            processed = next((line for line in said.splitlines() if line.startswith("processed ")), "")
            found.append(
                ProgramStatistics(
                    name,
                    section,
                    info.xlated_prog_len // 8,
                    info.verified_insns,
                    info.jited_prog_len,
                    processed,
                )
            )
        return tuple(found)

    # ---- before the load

    def _open(self) -> Handle:
        if self._object is None:
            raise ValueError(f"{self.path} is closed")
        return self._object

    def _programs(self) -> Iterator[tuple[str, str, Handle]]:
        program = libbpf.next_program(self._open(), None)
        while program is not None:
            yield libbpf.program_name(program), libbpf.section_name(program), program
            program = libbpf.next_program(self._open(), program)

    def _load(
        self,
        knobs: Mapping[str, ctypes.Structure],
        sizes: Mapping[str, int],
        shared: SharedMaps | None,
        with_statistics: bool,
    ) -> None:
        self.absent = ()
        self._set_knobs(knobs)
        for name, entries in sizes.items():
            libbpf.set_max_entries(libbpf.find_map(self._open(), name), entries)
        self._leave_out_absent()
        if with_statistics:
            self._ask_for_statistics()
        if shared is not None:
            shared.lend(self._open())
        libbpf.load(self._open(), os.path.basename(self.path))
        if shared is not None:
            shared.keep(self._open())

    def _has_constant(self, name: str) -> bool:
        try:
            return name in btf.section(libbpf.btf_of(self._open()), _RODATA).fields
        except BpfError:
            return False

    def _set_knobs(self, knobs: Mapping[str, ctypes.Structure]) -> None:
        if not knobs:
            return
        layout = btf.section(libbpf.btf_of(self._open()), _RODATA)
        section = libbpf.find_map(self._open(), _RODATA)
        content = libbpf.initial_value(section)
        for name, value in knobs.items():
            field = layout.fields.get(name)
            if field is None or field.size_bytes != ctypes.sizeof(value):
                raise ValueError(f"{self.path} has no constant {name} of {ctypes.sizeof(value)} bytes")
            content[field.offset_bytes : field.offset_bytes + field.size_bytes] = bytes(value)
        libbpf.set_initial_value(section, bytes(content))

    def _leave_out_absent(self) -> None:
        for name, section, program in self._programs():
            if not section.startswith(self._optional or ("\0",)):
                continue
            fact = features.attachable(section)
            if not fact.is_available:
                libbpf.set_autoload(program, False)
                self.absent += (Absent(name, section, fact.detail),)

    def _ask_for_statistics(self) -> None:
        for name, _, program in self._programs():
            self._logs[name] = ctypes.create_string_buffer(_LOG_BYTES)
            libbpf.set_log(program, self._logs[name], _LOG_STATISTICS)
