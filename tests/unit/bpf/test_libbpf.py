"""The wrappers: what fails says what was being done, the errno, and the decisive lines of the log."""

import errno
from pathlib import Path

import pytest

from agentcgroup.bpf import abi, features, libbpf
from agentcgroup.bpf.libbpf import BpfError, decisive
from agentcgroup.bpf.programs import Programs, object_path

pytestmark = pytest.mark.skipif(not features.libbpf().is_available, reason="libbpf.so.1 is not installed")

VERIFIER_LOG = """\
libbpf: prog 'on_fork': BPF program load failed: Permission denied
libbpf: prog 'on_fork': -- BEGIN PROG LOAD LOG --
0: R1=ctx() R10=fp0
; r0 = *ptr
1: (79) r0 = *(u64 *)(r2 +0)
R2 !read_ok
verification time 20 usec
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
-- END PROG LOAD LOG --
libbpf: prog 'on_fork': failed to load: -13
libbpf: failed to load object 'lifecycle.bpf.o'
""".splitlines()


def test_of_a_verifier_log_the_end_is_kept_without_its_statistics() -> None:
    assert decisive(VERIFIER_LOG, keep=2) == "1: (79) r0 = *(u64 *)(r2 +0) | R2 !read_ok"


def test_of_another_log_the_last_words_are_kept() -> None:
    assert decisive(["libbpf: one", "libbpf: two", "libbpf: three"]) == "two | three"
    assert decisive([]) == ""


def test_an_error_names_the_doing_the_errno_and_the_log() -> None:
    error = BpfError("loading x.bpf.o", errno.EACCES, "R2 !read_ok")
    assert str(error) == "loading x.bpf.o: Permission denied [EACCES]: R2 !read_ok"
    assert isinstance(error, OSError) and error.errno == errno.EACCES


def test_a_missing_object_names_its_path(tmp_path: Path) -> None:
    path = tmp_path / "none.bpf.o"
    with pytest.raises(BpfError, match=r"none\.bpf\.o.*ENOENT"):
        Programs(path)


def test_a_file_that_is_no_object_is_refused_with_libbpfs_words(tmp_path: Path) -> None:
    path = tmp_path / "text.bpf.o"
    path.write_text("no ELF file")
    with pytest.raises(BpfError, match="opening .*text"):
        Programs(path)


def test_an_unknown_knob_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match="no constant colour"):
        Programs(object_path("lifecycle"), knobs={"colour": abi.LifecycleKnobs()})


def test_a_knob_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="no constant knobs of 32 bytes"):
        Programs(object_path("lifecycle"), knobs={"knobs": abi.EventHeader()})


def test_an_unknown_map_is_named() -> None:
    with pytest.raises(BpfError, match="no_such_map.*ENOENT"):
        Programs(object_path("lifecycle"), sizes={"no_such_map": 1})


def test_the_programs_of_an_object_are_listed_with_what_they_attach_to() -> None:
    handle = libbpf.open_object(str(object_path("lifecycle")))
    found = {}
    program = libbpf.next_program(handle, None)
    while program is not None:
        found[libbpf.program_name(program)] = libbpf.section_name(program)
        program = libbpf.next_program(handle, program)
    libbpf.close_object(handle)
    assert found["on_fork"] == "tp_btf/sched_process_fork"
    assert found["on_throttle_end"] == "fexit/__mem_cgroup_handle_over_high"
