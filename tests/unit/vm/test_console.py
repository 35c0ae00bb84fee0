"""What is recognised on a guest's console."""

from vm.console import LAST_LINES, LINE_MOST_BYTES, LINES_BEFORE_PANIC, Console

PANIC = b"[   12.3] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\r\n"


def fed(*chunks: bytes) -> Console:
    console = Console()
    for chunk in chunks:
        console.feed(chunk)
    return console


def test_a_panic_is_recognised_wherever_the_bytes_are_cut() -> None:
    text = b"[   12.2] sysrq: Trigger a crash\r\n" + PANIC
    for cut in range(len(text)):
        assert fed(text[:cut], text[cut:]).has_panicked


def test_a_panic_is_recognised_before_its_line_ends() -> None:
    assert fed(PANIC[:45]).has_panicked


def test_talk_about_panics_is_none() -> None:
    assert not fed(
        b"Command line: quiet panic=-1\n", b"not syncing\nKernel pani", b"c\n - not syncing\n"
    ).has_panicked


def test_the_last_lines_are_kept_without_escapes_and_empty_ones() -> None:
    console = fed(
        b"\x1b[!p\x1b]104\x07\x1b[?7h\x1b[0;32mStarted\x1b[0m one\r\n\r\n \n", b"two\r\nthr", b"ee"
    )
    assert console.last_lines() == ["Started one", "two", "three"]


def test_only_the_last_lines_are_kept() -> None:
    console = fed(*(b"line %d\n" % number for number in range(1000)))
    assert console.last_lines() == [f"line {number}" for number in range(1000 - LAST_LINES, 1000)]


def test_a_panic_is_told_with_what_led_to_it_and_its_whole_trace() -> None:
    before = [f"before {number}" for number in range(100)]
    after = [f"trace {number}" for number in range(60)]
    lines = [line.encode() + b"\n" for line in before] + [PANIC] + [line.encode() + b"\n" for line in after]
    told = fed(*lines).last_lines()
    assert told[:LINES_BEFORE_PANIC] == before[-LINES_BEFORE_PANIC:]
    assert told[LINES_BEFORE_PANIC].startswith("[   12.3] Kernel panic")
    assert told[LINES_BEFORE_PANIC + 1 :] == after


def test_a_line_without_end_takes_no_memory_without_end() -> None:
    console = fed(*[b"x" * 1000] * 1000)
    assert all(len(line) <= LINE_MOST_BYTES for line in console.last_lines())
