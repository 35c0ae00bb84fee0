"""The command line of ``vm/run``: what it takes, what it says to --help, and what it refuses."""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from vm.kernel import DEFAULT_SERIES, SERIES
from vm.outcome import ExitStatus
from vm.tunnel import Forward, parse_forward

DEFAULT_OUT = Path("build/vm/out")
DEFAULT_TIMEOUT_S = 900.0
MEMORY = re.compile(r"^[1-9][0-9]*[MG]$")
SERIES_FORM = re.compile(r"^\d+\.\d+$")

DESCRIPTION = "Run one command in a Debian guest with cgroup v2, systemd, Docker and this project installed."
EPILOG = """\
The guest has no network. The command runs as root under systemd, with /root as its directory and /dev/null as its
stdin, once agentcgroup.service is up. agentcg, agentcgroupd and pytest are on PATH, installed from the working tree in
/opt/agentcgroup. docker.service and prometheus.service are there and not started. Everything the guest changes is
dropped at the end, except what the command writes under /mnt/out.

exit status:
  the command's own, 128+N when signal N ended it, and of vm/run itself:
  240  the guest's kernel panicked           242  the guest went away (powered off, QEMU died)
  241  the timeout passed                    243  set-up or arguments failed: nothing was run
  130  Ctrl-C                                (each with a line on stderr that begins with "vm:")

environment:
  AGENTCGROUP_CACHE_DIR    where kernels and images are kept (else agentcgroup/vm in $XDG_CACHE_HOME or ~/.cache)
  AGENTCGROUP_VM_PARALLEL  1: do not wait for other guests of this host

examples:
  vm/run -- uname -a
  vm/run --kernel 6.12 -- agentcg check
  vm/run --forward 127.0.0.1:9464=127.0.0.1:9464 --forward operator.sock=/run/agentcgroup/operator.sock -- sleep 600
  vm/run --share tests --out build/kernel -- pytest /mnt/share/tests/kernel --junitxml /mnt/out/kernel.xml
"""


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the user asked for."""

    series: str
    cpus: int
    memory: str
    shares: tuple[Path, ...]
    forwards: tuple[Forward, ...]
    out: Path
    timeout_s: float
    is_counted: bool
    is_bare: bool
    is_without_daemon: bool
    is_build_only: bool
    is_print_cache: bool
    is_clean: bool
    command: tuple[str, ...]


class Parser(argparse.ArgumentParser):
    """Exits with our status for failed set-ups: 2 could be the command's."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and how to learn more."""
        self.exit(ExitStatus.SETUP_FAILED, f"vm: {message}. Next step: vm/run --help\n")


def _series(text: str) -> str:
    if not SERIES_FORM.match(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a kernel series like {', '.join(SERIES)}")
    return text


def _memory(text: str) -> str:
    if not MEMORY.match(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 4G or 1500M")
    return text


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of CPUs from 1 to 64")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 7 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and below a week")
    return value


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a directory")
    return path.resolve()


def make_parser() -> Parser:
    """Return the parser, whose --help teaches."""
    parser = Parser(
        "vm/run",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="vm/run [OPTIONS] -- COMMAND...",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--kernel",
        type=_series,
        default=DEFAULT_SERIES,
        metavar="SERIES",
        help=f"newest Debian kernel of this series; tried: {', '.join(SERIES)} (default: %(default)s)",
    )
    add("--cpus", type=_count, metavar="N", help="processors of the guest (default: 2, with --counted 1)")
    add(
        "--counted",
        action="store_true",
        help="emulate, with a clock that goes by executed instructions, a nanosecond each: a measurement comes out the same"
        " whatever else this host does, in instructions, not in a processor's time; for one CPU, several take turns",
    )
    add(
        "--memory",
        type=_memory,
        default="4G",
        metavar="SIZE",
        help="memory of the guest (default: %(default)s)",
    )
    add(
        "--share",
        type=_directory,
        action="append",
        default=[],
        metavar="DIR",
        dest="shares",
        help="show a copy of DIR, read-only, as /mnt/share/<its name>; may be given several times",
    )
    _add_run_options(add)
    add("command", nargs="*", metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def _forward(text: str) -> Forward:
    try:
        return parse_forward(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _add_run_options(add: Callable[..., argparse.Action]) -> None:
    add(
        "--forward",
        type=_forward,
        action="append",
        default=[],
        metavar="LOCAL=REMOTE",
        dest="forwards",
        help="what connects to LOCAL here reaches REMOTE in the guest; each is HOST:PORT or the path of a Unix socket;"
        " may be given several times",
    )
    add(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        metavar="DIR",
        help="bring what is under /mnt/out at the end to DIR, replacing files of the same name"
        " (default: %(default)s in the repository, which is emptied first)",
    )
    add(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="stop the guest after this many seconds of running, boot included (default: %(default).0f)",
    )
    add(
        "--bare",
        action="store_true",
        help="without the project: for looking at the kernel alone, or when the tree does not build",
    )
    add(
        "--no-daemon",
        action="store_true",
        help="do not start agentcgroup.service at boot: saves its start when the command starts a daemon of its own",
    )
    add("--build-only", action="store_true", help="prepare everything for this kernel, boot nothing")
    add("--print-cache", action="store_true", help="list what the cache holds, in MiB")
    add("--clean", action="store_true", help="remove the cache")


def parse(words: Sequence[str]) -> Arguments:
    """Read the command line; exits with status 243 when it makes no sense."""
    parser = make_parser()
    own, command = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    found, unknown = parser.parse_known_args(list(own))
    if found.command:
        meant = [*own[list(own).index(found.command[0]) :], *command]
        parser.error(f"the command goes after --: vm/run [OPTIONS] -- {' '.join(meant)}")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    arguments = Arguments(
        found.kernel,
        found.cpus or (1 if found.counted else 2),
        found.memory,
        tuple(found.shares),
        tuple(found.forwards),
        found.out,
        found.timeout,
        found.counted,
        found.bare,
        found.no_daemon,
        found.build_only,
        found.print_cache,
        found.clean,
        tuple(command),
    )
    without_command = arguments.is_build_only + arguments.is_print_cache + arguments.is_clean
    if without_command > 1:
        parser.error("--build-only, --print-cache and --clean exclude each other")
    if bool(without_command) == bool(command):
        parser.error("a command is missing after --" if not command else "this option takes no command")
    names = [share.name for share in arguments.shares]
    doubles = {name for name in names if names.count(name) > 1}
    if doubles:
        parser.error(f"two shares would both be /mnt/share/{doubles.pop()}")
    if "" in names:
        parser.error("/ cannot be shared")
    return arguments
