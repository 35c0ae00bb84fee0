"""What people see: lines and pictures while it runs, tables and sentences at the end."""

import io
from pathlib import Path

import msgspec
from rich.console import Console

from agentcgroup.client import Verdict
from demo import live, report
from demo.expect import judge
from demo.records import Cost, Finished, Run, Said, Sampled, SessionSample, Told
from demo.story import MIB, StepName
from tests.unit.demo.runs import good_run, with_step


def judged(run: Run) -> Run:
    return msgspec.structs.replace(run, expectations=judge(run))


def printed(run: Run) -> str:
    output = io.StringIO()
    report.print_report(run, Console(file=output))
    return output.getvalue()


def test_the_report_on_disk_is_the_whole_run(tmp_path: Path) -> None:
    run = judged(good_run())

    report.write_report(run, tmp_path / "report.json")

    assert msgspec.json.decode((tmp_path / "report.json").read_bytes(), type=Run) == run
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_table_holds_every_call_and_the_nested_ones() -> None:
    text = printed(judged(good_run()))

    for words in ("clone library", "nested: true", "memory_limit_call", "330 MiB", "trimmed", "not run"):
        assert words in text
    assert "All 22 expectations hold" in text
    assert "The daemon's own cost: 57 MiB resident" in text


def test_an_expectation_that_does_not_hold_is_named_with_what_was_seen() -> None:
    text = printed(judged(with_step(good_run(), StepName.WAIT, verdict=Verdict.OK)))

    assert "FAIL The call that slept past its deadline was stopped." in text
    assert "wait-for-server: ok" in text
    assert "1 of 22 expectations do not hold" in text


def test_an_agent_that_failed_has_its_last_words_shown() -> None:
    run = good_run()
    failed = msgspec.structs.replace(run.agents[0], exit_status=1, output_tail="Traceback: it broke")

    assert "Traceback: it broke" in printed(msgspec.structs.replace(run, agents=(failed, *run.agents[1:])))


def test_unknown_figures_are_shown_as_unknown() -> None:
    assert report.size(None) == report.cpu_time(None) == "-"
    assert "CPU" not in report.words_of_cost(Cost(MIB, None, None, 1000, 3))


def test_lines_say_when_who_and_what() -> None:
    told = Told(12.34, "analyst", "ended", "Killed by the kernel.", "Declare more.", "memory_limit_call")

    assert (
        live.line_of(told) == "  12.3 s  analyst  memory_limit_call  Killed by the kernel. -> Declare more."
    )
    assert live.line_of(Said(0.0, "begins")) == "   0.0 s  begins"
    assert live.line_of(Told(0.0, "analyst", "hello", "Your limits are ...")) == ""


def test_a_bar_is_as_full_as_what_it_shows() -> None:
    assert live.bar(0, 100, 4) == "░░░░"
    assert live.bar(50, 100, 4) == "██░░"
    assert live.bar(500, 100, 4) == "████"
    assert live.bar(None, 100, 4) == live.bar(1, None, 4) == "????"


def test_the_picture_shows_sessions_and_messages() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=140)
    session = SessionSample("builder", "high", 100 * MIB, 120 * MIB, 96 * MIB, 432 * MIB, ("build",))
    with live.LiveView(console) as view:
        view.show(Sampled(1.0, 150 * MIB, 688 * MIB, (session,)))
        view.show(Said(1.0, "something happened"))
        view.show("a line of the guest")
        view.show(Finished(good_run()))

    text = output.getvalue()
    assert "builder" in text
    assert "100 MiB of 432 MiB" in text
    assert "150 MiB of 688 MiB" in text
    assert "something happened" in text
    assert "a line of the guest" in text


def test_elsewhere_than_on_a_terminal_there_are_lines() -> None:
    output = io.StringIO()
    view = live.choose_view(Console(file=output))
    view.show(Sampled(1.0, None, 1, ()))
    view.show(Said(1.0, "a [bracketed] line"))

    assert output.getvalue() == "   1.0 s  a [bracketed] line\n"
