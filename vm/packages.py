"""Debian packages by apt: the mirror this host uses, a private apt state for other suites, and the tools set-up needs.

The private state (sources, lists, archives below the cache) leaves the host's own apt sources and lists as they are;
the host's apt configuration (proxy, certificates, pinning) stays in force. Interfaces: apt-get(8), apt.conf(5),
``apt-get indextargets`` for the configured mirrors.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vm.cache import Cache
from vm.outcome import SetupError
from vm.steps import read_output, run_logged, step

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
QEMU = "qemu-system-x86_64"
QEMU_PACKAGE = "qemu-system-x86"
# 7.2 corrupts guest memory with two TCG CPUs under Linux 6.12; 10.0.2 booted every kernel tried.
QEMU_LEAST_MAJOR = 10
LISTS_FRESH_S = 6 * 3600

# Program that must be found, and the package that brings it.
TOOLS = (
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("sfdisk", "fdisk"),
    ("depmod", "kmod"),
    ("zstd", "zstd"),
    ("cc", "gcc"),
    ("make", "make"),
)
# Administrators' programs live here, and not every root shell has them on PATH.
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

# Which of the host's apt settings a private apt elsewhere needs to reach the same mirror.
TRANSPORT_SETTING = re.compile(r"^(Acquire::(http|https|ftp|Check-Date|Check-Valid-Until|Retries|ForceIPv[46])\b.*) (\".*\";)$")


@dataclass(frozen=True, slots=True)
class Release:
    """What os-release(5) says about this host."""

    id: str
    codename: str


@dataclass(frozen=True, slots=True)
class Source:
    """One suite of a mirror, as apt knows it."""

    uri: str
    suite: str

    def line(self) -> str:
        """Return the one-line sources.list(5) entry."""
        return f"deb [signed-by={KEYRING}] {self.uri} {self.suite} main\n"


def parse_os_release(text: str) -> Release:
    """Read ID and VERSION_CODENAME out of an os-release file; what is absent is an empty string."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return Release(fields.get("ID", "").strip('"'), fields.get("VERSION_CODENAME", "").strip('"'))


def require_debian() -> Release:
    """Return this host's release; raises SetupError when it is not a Debian on amd64 with apt and its keyring."""
    path = Path("/etc/os-release")
    release = parse_os_release(path.read_text() if path.exists() else "")
    if release.id != "debian" or not release.codename or shutil.which("apt-get") is None:
        raise SetupError(
            f"this host is {release.id or 'not known to be'!s}, not Debian with a released suite: the guest is made by apt and mmdebstrap"
            " from the Debian mirror of the host. Next step: run it on Debian 12 or newer (a virtual machine or a"
            " privileged debian:trixie container will do)."
        )
    machine = os.uname().machine
    if machine != "x86_64":
        raise SetupError(f"this host is {machine}; the guest is made for x86_64 only. Next step: use an x86_64 Debian.")
    if not KEYRING.exists():
        raise SetupError(f"{KEYRING} is missing. Next step: apt-get install debian-archive-keyring")
    return release


def require_root(purpose: str) -> None:
    """Raise SetupError unless we are root."""
    if os.geteuid() != 0:
        raise SetupError(f"{purpose} needs root. Next step: run the same command as root (sudo), or once as root to fill the cache.")


def host_sources(codename: str) -> list[Source]:
    """Return the suites of ``codename`` that this host's apt is set up with, its main archive first."""
    text = read_output(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
    return choose_sources(text, codename)


def choose_sources(targets: str, codename: str) -> list[Source]:
    """Pick Debian's own suites out of lines of "URI RELEASE COMPONENT"; raises SetupError without a main archive."""
    found = list(dict.fromkeys(
        Source(uri.rstrip("/"), suite)
        for uri, suite, component in (line.split() for line in targets.splitlines() if len(line.split()) == 3)
        if component == "main" and (suite == codename or suite.startswith(f"{codename}-")) and not uri.startswith("cdrom:")
    ))
    found.sort(key=lambda source: source.suite != codename)
    if not found or found[0].suite != codename:
        raise SetupError(f"apt on this host has no source for {codename} main. Next step: add one to /etc/apt/sources.list.")
    return found


def transport_settings() -> list[str]:
    """Return the host's apt settings for proxies, certificates and date checks, as apt.conf(5) lines."""
    lines = read_output(["apt-config", "dump"]).splitlines()
    return [line for line in lines if TRANSPORT_SETTING.match(line) and not line.endswith(' "";')]


@dataclass(frozen=True, slots=True)
class Apt:
    """An apt with its own sources and lists; ``status`` is the dpkg status it resolves against."""

    directory: Path
    sources: tuple[Source, ...]
    log: Path
    status: Path | None = None

    def options(self) -> list[str]:
        """Return the options that make any apt program use this state."""
        settings = {
            "Dir::Etc::SourceList": self.directory / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": self.directory / "lists",
            "Dir::Cache": self.directory / "cache",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "APT::Update::Post-Invoke-Success": "",
        }
        if self.status is not None:
            settings["Dir::State::Status"] = self.status
        return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]

    def update(self, *, force: bool = False) -> None:
        """Fetch the package lists unless they are of today."""
        stamp = self.directory / "updated"
        wanted = "".join(source.line() for source in self.sources)
        if not force and stamp.exists() and stamp.read_text() == wanted and time.time() - stamp.stat().st_mtime < LISTS_FRESH_S:
            return
        for name in ("lists/partial", "cache/archives/partial"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "sources.list").write_text(wanted)
        if self.status is not None:
            self.status.touch()
        suites = ", ".join(source.suite for source in self.sources)
        with step(f"fetching the package lists of {suites}"):
            run_logged(
                ["apt-get", "-q", *self.options(), "-o", "APT::Update::Error-Mode=any", "update"], self.log,
                hint="Next step: check that this host's apt mirror serves these suites and is reachable.",
            )
        stamp.write_text(wanted)

    def names(self, prefix: str) -> list[str]:
        """Return the package names that start with ``prefix``."""
        return read_output(["apt-cache", *self.options(), "pkgnames", prefix]).split()

    def candidates(self, package: str) -> list[tuple[str, str]]:
        """Return (version, suite) of every version of ``package`` on offer, newest first."""
        rows = [line.split("|") for line in read_output(["apt-cache", *self.options(), "madison", package]).splitlines()]
        return [(row[1].strip(), row[2].split()[1].split("/")[0]) for row in rows if len(row) == 3]

    def download(self, packages: Sequence[str], directory: Path) -> list[Path]:
        """Fetch packages into ``directory`` without installing them."""
        run_logged(["apt-get", "-q", *self.options(), "download", *packages], self.log, cwd=directory,
                   hint="Next step: try again; when the mirror has moved on, vm/run --clean fetches new lists.")
        return sorted(directory.glob("*.deb"))

    def install(self, packages: Sequence[str], *, suite: str | None = None) -> None:
        """Install packages on this host, without recommendations."""
        target = ["-t", suite] if suite else []
        run_logged(
            ["apt-get", "-q", "-y", *self.options(), "--no-install-recommends", *target, "install", *packages], self.log,
            env={"DEBIAN_FRONTEND": "noninteractive"}, hint="Next step: read the log; install these packages by hand and start again.",
        )


def guest_apt(cache: Cache, uri: str, suites: Sequence[str]) -> Apt:
    """Return an apt that sees only ``suites`` of the mirror and nothing as installed, for downloads."""
    directory = cache.path("apt", "guest")
    return Apt(directory, tuple(Source(uri, suite) for suite in suites), cache.log("apt"), directory / "status")


def major_version(text: str) -> int | None:
    """Return the first number of a version like ``1:10.0.2+ds`` or of ``QEMU emulator version 7.2.22``."""
    found = re.search(r"(?:^|version )(?:\d+:)?(\d+)\.", text.strip())
    return int(found.group(1)) if found else None


def qemu_version() -> str | None:
    """Return the first line of ``qemu-system-x86_64 --version``; None when it is not installed."""
    if shutil.which(QEMU) is None:
        return None
    done = subprocess.run([QEMU, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.stdout else None


def qemu_is_usable(version: str | None) -> bool:
    """Whether this QEMU is new enough."""
    major = major_version(version) if version else None
    return major is not None and major >= QEMU_LEAST_MAJOR


def ensure_tools(cache: Cache) -> None:
    """Install the programs that building and booting need and that this host does not have."""
    os.environ["PATH"] = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin") + ":" + SYSTEM_PATH
    missing = sorted({package for tool, package in TOOLS if shutil.which(tool) is None})
    if "gcc" in missing:
        missing.append("libc6-dev")
    qemu_missing = not qemu_is_usable(qemu_version())
    if not missing and not qemu_missing:
        return
    require_root(f"installing {', '.join([*missing, *([QEMU_PACKAGE] if qemu_missing else [])])} by apt")
    release = require_debian()
    with cache.lock("apt"):
        sources = host_sources(release.codename)
        backports = Source(sources[0].uri, f"{release.codename}-backports")
        apt = Apt(cache.path("apt", "host"), tuple(dict.fromkeys([*sources, backports])), cache.log("apt"))
        apt.update()
        if missing:
            with step(f"installing {', '.join(missing)}"):
                apt.install(missing)
        if qemu_missing:
            _install_qemu(apt, backports)


def _install_qemu(apt: Apt, backports: Source) -> None:
    offers = apt.candidates(QEMU_PACKAGE)
    # The host's own suites first: backports only when they have nothing new enough.
    offers.sort(key=lambda offer: offer[1] == backports.suite)
    for version, suite in offers:
        if qemu_is_usable(version):
            with step(f"installing {QEMU_PACKAGE} {version} from {suite}"):
                apt.install([QEMU_PACKAGE], suite=suite if suite == backports.suite else None)
            break
    else:
        known = ", ".join(f"{version} ({suite})" for version, suite in offers) or "none"
        raise SetupError(f"QEMU {QEMU_LEAST_MAJOR} or newer is needed; on offer here: {known}. Next step: install a newer qemu-system-x86 by hand.")
    if not qemu_is_usable(qemu_version()):
        raise SetupError(f"{QEMU} on PATH is still older than {QEMU_LEAST_MAJOR} ({qemu_version()}). Next step: remove it or put the new one first.")
