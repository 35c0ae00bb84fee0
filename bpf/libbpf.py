"""libbpf.so.1 by ctypes: one checked wrapper for each function that we call, for libbpf 1.1 to 1.5 and later.

A wrapper raises BpfError, an OSError, for whatever libbpf reports; nothing here interprets. The library is loaded at the
first use, so that a host without it can be asked about. Sources: bpf/libbpf.h, bpf/btf.h, bpf/bpf.h.
"""

import contextlib
import ctypes
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final

__all__ = [
    "BpfError",
    "Handle",
    "RingCallback",
    "attach",
    "attach_target_id",
    "autoload",
    "btf_of",
    "checked",
    "close_object",
    "consume_ring",
    "destroy_link",
    "find_map",
    "free_ring",
    "initial_value",
    "library",
    "load",
    "make_ring",
    "map_fd",
    "maps",
    "next_program",
    "object_info",
    "open_object",
    "program_fd",
    "program_name",
    "reuse_map",
    "run_program",
    "ring_epoll_fd",
    "section_name",
    "set_autoload",
    "set_initial_value",
    "set_log",
    "set_max_entries",
    "value_bytes",
    "version",
]

# An opaque pointer of libbpf's: object, program, map, link, ring buffer or BTF.
Handle = int

_WARN: Final = 0
# enum libbpf_print_level, const char *format, va_list
_Print = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
# void *ctx, void *data, size_t size
RingCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_LOG_LINE_BYTES: Final = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_said = threading.local()


class BpfError(OSError):
    """What libbpf or the kernel refused, with the errno and the decisive lines of their log."""

    def __init__(self, doing: str, code: int, log: str = "") -> None:
        super().__init__(code, os.strerror(code))
        self.doing: Final = doing
        self.log: Final = log

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno or 0, str(self.errno))
        text = f"{self.doing}: {self.strerror} [{name}]"
        return f"{text}: {self.log}" if self.log else text


def _listen(level: int, text: bytes, arguments: int) -> int:
    lines: list[str] | None = getattr(_said, "lines", None)
    if level != _WARN or lines is None:
        return 0
    buffer = ctypes.create_string_buffer(_LOG_LINE_BYTES)
    _libc.vsnprintf(buffer, ctypes.c_size_t(_LOG_LINE_BYTES), text, ctypes.c_void_p(arguments))
    lines += buffer.value.decode(errors="replace").splitlines()
    return 0


# libbpf keeps the pointer, so the object must live as long as the process.
_listener = _Print(_listen)


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """What libbpf says meanwhile on this thread, instead of on stderr."""
    _said.lines = []
    try:
        yield _said.lines
    finally:
        _said.lines = None


def decisive(lines: list[str], keep: int = 6) -> str:
    """The lines of a libbpf log that tell why: the end of the verifier's, without its statistics, else the last words."""
    begin = next((i for i, line in enumerate(lines) if "BEGIN PROG LOAD LOG" in line), None)
    end = next((i for i, line in enumerate(lines) if "END PROG LOAD LOG" in line), len(lines))
    if begin is not None:
        verifier = [
            line
            for line in lines[begin + 1 : end]
            if line and not line.startswith(("processed ", "verification time"))
        ]
        return " | ".join(verifier[-keep:])
    return " | ".join(line.removeprefix("libbpf: ") for line in lines[-2:])


@functools.cache
def library() -> ctypes.CDLL:
    """libbpf.so.1. Raises OSError where it is not installed (Debian: libbpf1)."""
    loaded = ctypes.CDLL("libbpf.so.1", use_errno=True)
    pointer, text, number, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    for name, result, arguments in (
        ("libbpf_set_print", pointer, (_Print,)),
        ("libbpf_version_string", text, ()),
        ("libbpf_find_vmlinux_btf_id", number, (text, number)),
        ("bpf_object__open_file", pointer, (text, pointer)),
        ("bpf_object__load", number, (pointer,)),
        ("bpf_object__close", None, (pointer,)),
        ("bpf_object__btf", pointer, (pointer,)),
        ("bpf_object__next_program", pointer, (pointer, pointer)),
        ("bpf_object__find_map_by_name", pointer, (pointer, text)),
        ("bpf_program__name", text, (pointer,)),
        ("bpf_program__section_name", text, (pointer,)),
        ("bpf_program__autoload", ctypes.c_bool, (pointer,)),
        ("bpf_program__set_autoload", number, (pointer, ctypes.c_bool)),
        ("bpf_program__set_log_buf", number, (pointer, pointer, size)),
        ("bpf_program__set_log_level", number, (pointer, ctypes.c_uint32)),
        ("bpf_program__attach", pointer, (pointer,)),
        ("bpf_program__fd", number, (pointer,)),
        ("bpf_prog_test_run_opts", number, (number, pointer)),
        ("bpf_link__destroy", number, (pointer,)),
        ("bpf_object__next_map", pointer, (pointer, pointer)),
        ("bpf_map__name", text, (pointer,)),
        ("bpf_map__fd", number, (pointer,)),
        ("bpf_map__reuse_fd", number, (pointer, number)),
        ("bpf_map__value_size", ctypes.c_uint32, (pointer,)),
        ("bpf_map__set_max_entries", number, (pointer, ctypes.c_uint32)),
        ("bpf_map__initial_value", pointer, (pointer, pointer)),
        ("bpf_map__set_initial_value", number, (pointer, pointer, size)),
        ("bpf_map_lookup_elem", number, (number, pointer, pointer)),
        ("bpf_map_lookup_and_delete_elem", number, (number, pointer, pointer)),
        ("bpf_map_update_elem", number, (number, pointer, pointer, ctypes.c_uint64)),
        ("bpf_map_delete_elem", number, (number, pointer)),
        ("bpf_map_get_next_key", number, (number, pointer, pointer)),
        ("bpf_map_lookup_batch", number, (number, pointer, pointer, pointer, pointer, pointer, pointer)),
        ("bpf_obj_get_info_by_fd", number, (number, pointer, pointer)),
        ("ring_buffer__new", pointer, (number, RingCallback, pointer, pointer)),
        ("ring_buffer__free", None, (pointer,)),
        ("ring_buffer__consume", number, (pointer,)),
        ("ring_buffer__epoll_fd", number, (pointer,)),
    ):
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, arguments
    loaded.libbpf_set_print(_listener)
    return loaded


def version() -> str:
    """The library's release, like "v1.5"."""
    text: bytes = library().libbpf_version_string()
    return text.decode()


def checked(doing: str, call: Callable[..., int], *arguments: object) -> int:
    """What `call` returned; raises BpfError. libbpf 1.x returns a negative errno from functions that return a number."""
    with _listening() as lines:
        result = call(*arguments)
    if result < 0:
        raise BpfError(doing, -result, decisive(lines))
    return result


def _pointer(doing: str, call: Callable[..., int | None], *arguments: object) -> Handle:
    """libbpf 1.x returns NULL, with errno, from functions that return a pointer."""
    with _listening() as lines:
        result = call(*arguments)
        code = ctypes.get_errno()
    if not result:
        raise BpfError(doing, code, decisive(lines))
    return result


def attach_target_id(name: str, attach_type: int) -> int:
    """The BTF id in the kernel of what a program of `attach_type` attaches to."""
    return checked(
        f"looking for {name} in the kernel's types",
        library().libbpf_find_vmlinux_btf_id,
        name.encode(),
        attach_type,
    )


# ---- objects and programs


def open_object(path: str) -> Handle:
    """Parses the object file; nothing is in the kernel yet."""
    return _pointer(f"opening {path}", library().bpf_object__open_file, os.fsencode(path), None)


def load(handle: Handle, what: str) -> None:
    """Makes the maps and loads the programs that are to be loaded."""
    checked(f"loading {what}", library().bpf_object__load, handle)


def close_object(handle: Handle) -> None:
    """Frees the object and closes its maps and programs; links are to be destroyed before."""
    library().bpf_object__close(handle)


def btf_of(handle: Handle) -> Handle:
    """The type information of an open object; it lives as long as the object."""
    return _pointer("reading the object's types", library().bpf_object__btf, handle)


def next_program(handle: Handle, previous: Handle | None) -> Handle | None:
    """The program after `previous`, the first one after None; None after the last."""
    found: int | None = library().bpf_object__next_program(handle, previous)
    return found


def program_name(program: Handle) -> str:
    name: bytes = library().bpf_program__name(program)
    return name.decode()


def section_name(program: Handle) -> str:
    """What it attaches to, as the source says: "tp_btf/sched_process_fork"."""
    name: bytes = library().bpf_program__section_name(program)
    return name.decode()


def autoload(program: Handle) -> bool:
    """Whether `load` will load it."""
    return bool(library().bpf_program__autoload(program))


def set_autoload(program: Handle, wanted: bool) -> None:
    """Before `load`: whether it is loaded."""
    checked("choosing what is loaded", library().bpf_program__set_autoload, program, wanted)


def set_log(program: Handle, buffer: "ctypes.Array[ctypes.c_char]", level: int) -> None:
    """Before `load`: the verifier writes into `buffer`, which must outlive the object. Level 4 is its statistics."""
    checked("choosing the verifier's log", library().bpf_program__set_log_buf, program, buffer, len(buffer))
    checked("choosing the verifier's log", library().bpf_program__set_log_level, program, level)


def attach(program: Handle, what: str) -> Handle:
    """A link: the program runs until the link is destroyed or the process ends."""
    return _pointer(f"attaching {what}", library().bpf_program__attach, program)


def program_fd(program: Handle) -> int:
    return checked("asking for a program's descriptor", library().bpf_program__fd, program)


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        *((name, ctypes.c_void_p) for name in ("data_in", "data_out")),
        *((name, ctypes.c_uint32) for name in ("data_size_in", "data_size_out")),
        *((name, ctypes.c_void_p) for name in ("ctx_in", "ctx_out")),
        *((name, ctypes.c_uint32) for name in ("ctx_size_in", "ctx_size_out")),
        *(
            (name, ctypes.c_uint32)
            for name in ("retval", "repeat", "duration", "flags", "cpu", "batch_size")
        ),
    ]


def run_program(fd: int, context: ctypes.Structure | None = None) -> int:
    """Runs a program of section "syscall" once; what it returned (kernel 5.14). It may read and change `context`."""
    options = _RunOptions(ctypes.sizeof(_RunOptions))
    if context is not None:
        options.ctx_in, options.ctx_size_in = ctypes.addressof(context), ctypes.sizeof(context)
    checked("running a program", library().bpf_prog_test_run_opts, fd, ctypes.byref(options))
    return int(options.retval)


def destroy_link(link: Handle) -> None:
    """Detaches and frees."""
    checked("detaching a program", library().bpf_link__destroy, link)


# ---- maps


def find_map(handle: Handle, name: str) -> Handle:
    return _pointer(
        f"looking for the map {name}", library().bpf_object__find_map_by_name, handle, name.encode()
    )


def map_fd(handle: Handle) -> int:
    """The descriptor of a map of a loaded object; the object closes it."""
    return checked("asking for a map's descriptor", library().bpf_map__fd, handle)


def maps(handle: Handle) -> Iterator[tuple[str, Handle]]:
    """The maps of an open object by name, in the order of the source."""
    found: int | None = library().bpf_object__next_map(handle, None)
    while found is not None:
        name: bytes = library().bpf_map__name(found)
        yield name.decode(), found
        found = library().bpf_object__next_map(handle, found)


def reuse_map(handle: Handle, fd: int) -> None:
    """Before `load`: use the map behind `fd`, which stays the caller's, instead of making one."""
    checked("reusing a map", library().bpf_map__reuse_fd, handle, fd)


def value_bytes(handle: Handle) -> int:
    """Size of an entry of the map."""
    return int(library().bpf_map__value_size(handle))


def set_max_entries(handle: Handle, entries: int) -> None:
    """Before `load`: the size, of a ring buffer in bytes."""
    checked(f"making a map {entries} large", library().bpf_map__set_max_entries, handle, entries)


def initial_value(handle: Handle) -> bytearray:
    """Before `load`: what a section's map begins with, as the source says."""
    size = ctypes.c_size_t()
    address = library().bpf_map__initial_value(handle, ctypes.byref(size))
    return bytearray(ctypes.string_at(address, size.value)) if address else bytearray()


def set_initial_value(handle: Handle, value: bytes) -> None:
    """Before `load`: the whole of a section's map (.rodata, .data)."""
    checked("setting a section's values", library().bpf_map__set_initial_value, handle, value, len(value))


# ---- ring buffers


def make_ring(fd: int, callback: "ctypes._FuncPointer") -> Handle:
    """A reader of the ring buffer map; `callback`, a RingCallback, must outlive it."""
    return _pointer("opening a ring buffer", library().ring_buffer__new, fd, callback, None, None)


def consume_ring(ring: Handle) -> int:
    """Calls back for every record there is; a callback's negative answer stops it and is returned."""
    result: int = library().ring_buffer__consume(ring)
    return result


def ring_epoll_fd(ring: Handle) -> int:
    """Readable when there are records; the ring closes it."""
    return checked("asking for a ring buffer's descriptor", library().ring_buffer__epoll_fd, ring)


def free_ring(ring: Handle) -> None:
    library().ring_buffer__free(ring)


def object_info(fd: int, info: ctypes.Structure) -> None:
    """Fills `info`, a struct bpf_prog_info or bpf_map_info or a part of its beginning; what the kernel lacks stays 0."""
    length = ctypes.c_uint32(ctypes.sizeof(info))
    doing = "asking the kernel about a BPF object"
    checked(doing, library().bpf_obj_get_info_by_fd, fd, ctypes.byref(info), ctypes.byref(length))
