"""The main job's command line: `python -m demo`, which is `make run`."""

import argparse
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
from rich.console import Console

from agentcgroup.client.errors import ClientError
from demo import report
from demo.expect import judge
from demo.fetch import SetupFailed, set_up
from demo.guest import Guest, Reach
from demo.host import choose
from demo.live import View, choose_view
from demo.records import Event, Finished, Run, Said, encode_event
from demo.service import DaemonFailed, free_port

OUT: Final = Path("build/run")
FAILED: Final = 1
BROKEN: Final = 2
INTERRUPTED: Final = 130

EPILOG: Final = """\
What happens: real projects are fetched from the package registries (once), agentcgroupd starts, and three scripted
agents, one of high priority, make real tool calls on them: git, a C build, a package install, a test suite, a data job
with a memory burst, under a host budget smaller than their peaks together. Some calls misbehave on purpose. At the end
every call stands in a table, and every expectation is judged.

exit status:
  0  every expectation holds     1  some do not: they are named, with what was seen
  2  it could not be played to its end (set-up, daemon, guest); the message says why     130  Ctrl-C

examples:
  make run                                here if this host's cgroup v2 enforces limits, else in a guest
  make run ARGS="--serve"                 the same, then keep the daemon up until Ctrl-C
  make run ARGS="--guest --kernel 6.12"   in the guest, on another kernel

The results are in build/run: report.json (all of it), daemon/ (configuration, log, history), one log an agent.
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser, whose --help teaches."""
    parser = argparse.ArgumentParser(
        prog="python -m demo", description="Run three agents under one host budget and report on every call.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--native", action="store_true", help="run on this host, whatever the probe says")
    where.add_argument("--guest", action="store_true", help="run in the guest, whatever the probe says")
    add(
        "--kernel",
        default="7.3",
        metavar="SERIES",
        help="the guest's kernel: 6.12, 6.18 or 7.3 (default: %(default)s)",
    )
    add("--serve", action="store_true", help="keep daemon, metrics and API up afterwards, until Ctrl-C")
    add(
        "--seconds",
        type=int,
        default=600,
        metavar="S",
        help="stop agents that take longer (default: %(default)s)",
    )
    add("--keep", action="store_true", help="keep the agents' working directories")
    add("--out", type=Path, default=OUT, metavar="DIR", help="where results go (default: %(default)s)")
    # For the job inside the guest.
    for option in ("--input", "--why"):
        add(option, default="", help=argparse.SUPPRESS)
    add("--events", action="store_true", help=argparse.SUPPRESS)
    add("--samples", action="store_true", help=argparse.SUPPRESS)
    return parser


@contextlib.contextmanager
def sole(out: Path) -> Iterator[None]:
    """Holds the results' directory against a second job. Raises SetupFailed."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupFailed(
                f"another make run works in {out}. Next step: wait for it, or give --out"
            ) from None
        yield


def run_here(
    arguments: argparse.Namespace, why: str, show: Callable[[Event], None], *, runs_unenforced: bool = False
) -> None:
    """Plays the story on this machine, shows the judged Run at the end, and serves when asked."""
    from demo.stage import Setting, Stage

    setting = Setting(
        input=Path(arguments.input or arguments.out / "input").resolve(), out=arguments.out.resolve(),
        seconds=arguments.seconds, keeps_files=arguments.keep,
        where="guest" if os.environ.get("AGENTCGROUP_VM") else "native", why=why,
        runs_unenforced=runs_unenforced, samples=arguments.samples,
    )  # fmt: skip
    with contextlib.closing(Stage(setting, show)) as stage:
        run = stage.play()
        show(Finished(msgspec.structs.replace(run, expectations=judge(run))))
        if arguments.serve:
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()


def run_in_guest(arguments: argparse.Namespace, why: str, audience: "Audience") -> None:
    """Plays it in the guest."""
    port = free_port() if arguments.serve else None
    guest = Guest(arguments.kernel, arguments.out / "input", arguments.out, arguments.seconds, port)
    if arguments.serve:
        audience.reach = guest.reach
    words = [f"--{name}" for name in ("serve", "keep", "samples") if getattr(arguments, name)]
    status = guest.run(why, words, audience.show)
    if audience.run is None:
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        audience.say(f"the guest ended with status {status} before the story did")


class Audience:
    """Shows events, keeps the Run that comes at the end and writes it down."""

    def __init__(self, view: View, console: Console, out: Path, *, serves: bool) -> None:
        self._view = view
        self._console = console
        self._out = out
        self._serves = serves
        self._started_s = time.monotonic()
        self.run: Run | None = None
        # How the daemon is reached from here; None: as it says itself.
        self.reach: Reach | None = None

    def say(self, text: str) -> None:
        """One line of the job's own."""
        self.show(Said(0.0, text))

    def show(self, event: Event | str) -> None:
        """Shows an event or a line; the report, when the story is over."""
        if isinstance(event, str):
            self._view.show(event)
        elif isinstance(event, Finished):
            self._finish(event.run)
        else:
            # By the clock of this side: the guest's began later.
            self._view.show(msgspec.structs.replace(event, at_s=time.monotonic() - self._started_s))

    def _finish(self, run: Run) -> None:
        self.run = run
        self._view.settle()
        report.write_report(run, self._out / "report.json")
        report.print_report(run, self._console)
        if self._serves:
            reach = self.reach or Reach(run.metrics_url, run.operator_socket)
            self.say(
                f"serving until Ctrl-C: metrics at {reach.metrics_url}, operators' API at unix:{reach.operator_socket}"
            )
            self.say(
                f"for example: curl {reach.metrics_url}; agentcg history --socket {reach.operator_socket}"
            )

    def status(self) -> int:
        """The job's exit status."""
        if self.run is None:
            return BROKEN
        return 0 if all(verdict.holds for verdict in self.run.expectations) else FAILED


def _print_event(event: Event) -> None:
    # Threads share standard output; one write a line keeps lines whole.
    sys.stdout.write(encode_event(event) + "\n")
    sys.stdout.flush()


def play(arguments: argparse.Namespace) -> int:
    """Sets up, chooses where, plays, reports; the exit status."""
    console = Console()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with sole(arguments.out), choose_view(console) as view:
        audience = Audience(view, console, arguments.out, serves=arguments.serve)
        arguments.samples = console.is_terminal
        if not arguments.input:
            set_up(arguments.out, audience.say)
        choice = choose()
        if arguments.guest or (not arguments.native and not choice.is_native):
            why = "asked for" if arguments.guest else choice.why
            audience.say(f"in a guest with Linux {arguments.kernel}: {why}")
            run_in_guest(arguments, why, audience)
        else:
            how = "natively" if choice.is_native else "natively, as asked, without limits"
            audience.say(f"{how}: {choice.why}")
            run_here(arguments, choice.why, audience.show, runs_unenforced=not choice.is_native)
        return audience.status()


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    """Runs the job; returns its exit status."""
    arguments = make_parser().parse_args(words)
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        if arguments.events:
            run_here(arguments, arguments.why, _print_event)
            return 0
        return play(arguments)
    except (SetupFailed, DaemonFailed, ClientError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return BROKEN
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
