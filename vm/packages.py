"""Debian packages by apt: the mirror this host uses, and apt states of our own for other suites.

The private state (sources, lists, archives below the cache) leaves the host's own apt sources and lists as they are;
the host's apt configuration (proxy, certificates, pinning) stays in force. Interfaces: apt-get(8), apt.conf(5),
``apt-get indextargets`` for the configured mirrors.
"""

import os
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vm.cache import Cache
from vm.outcome import SetupError
from vm.steps import read_output, run_logged, step

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LISTS_FRESH_S = 6 * 3600
DEBIAN_PATH = re.compile(r"/debian(-security)?$")

# Which of the host's apt settings a private apt elsewhere needs to reach the same mirror.
TRANSPORT_SETTING = re.compile(
    r"^(Acquire::(http|https|ftp|Check-Date|Check-Valid-Until|Retries|ForceIPv[46])\b.*) (\".*\";)$"
)


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
    fields = dict(
        line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#")
    )
    return Release(fields.get("ID", "").strip('"'), fields.get("VERSION_CODENAME", "").strip('"'))


def require_debian() -> Release:
    """Return this host's release; raises SetupError when it is not a Debian on amd64 with apt and its keyring."""
    path = Path("/etc/os-release")
    release = parse_os_release(path.read_text() if path.exists() else "")
    if release.id != "debian" or not release.codename or shutil.which("apt-get") is None:
        raise SetupError(
            f"this host is {release.id or 'unknown'}, not a released Debian: the guest is made by apt and mmdebstrap from"
            " the host's Debian mirror. Next step: run it on Debian 12 or newer (a virtual machine or a privileged"
            " debian:trixie container will do)."
        )
    machine = os.uname().machine
    if machine != "x86_64":
        raise SetupError(
            f"this host is {machine}; the guest is made for x86_64 only. Next step: use an x86_64 Debian."
        )
    if not KEYRING.exists():
        raise SetupError(f"{KEYRING} is missing. Next step: apt-get install debian-archive-keyring")
    return release


def host_sources(codename: str) -> list[Source]:
    """Return the suites of ``codename`` that this host's apt is set up with, its main archive first."""
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    return choose_sources(
        read_output(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]), codename
    )


def choose_sources(targets: str, codename: str) -> list[Source]:
    """Pick Debian's own suites out of lines of "URI|RELEASE|COMPONENT|ORIGIN"; raises SetupError without a main archive.

    Others publish suites of the same names. The origin tells, and before the first ``apt-get update``, when it is
    unknown, the path of the URI does.
    """
    found: dict[Source, None] = {}
    for row in (line.split("|") for line in targets.splitlines()):
        if len(row) != 4 or row[2] != "main" or row[0].startswith("cdrom:"):
            continue
        uri, suite, origin = row[0].rstrip("/"), row[1], row[3]
        is_debian = origin == "Debian" or (not origin and DEBIAN_PATH.search(uri))
        if is_debian and (suite == codename or suite.startswith(f"{codename}-")):
            found[Source(uri, suite)] = None
    sources = sorted(found, key=lambda source: source.suite != codename)
    if not sources or sources[0].suite != codename:
        raise SetupError(
            f"apt on this host has no Debian source for {codename} main. Next step: add one to /etc/apt/sources.list."
        )
    return sources


def transport_settings() -> list[str]:
    """Return the host's apt settings for proxies, certificates and date checks, as apt.conf(5) lines."""
    return select_transport_settings(read_output(["apt-config", "dump"]).splitlines())


def select_transport_settings(lines: Iterable[str]) -> list[str]:
    """Pick the lines of ``apt-config dump`` that matter on the way to a mirror."""
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
        """Fetch the package lists unless that was done in the last hours."""
        stamp = self.directory / "updated"
        wanted = "".join(source.line() for source in self.sources)
        is_fresh = stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_FRESH_S
        if is_fresh and not force and stamp.read_text() == wanted:
            return
        for name in ("lists/partial", "cache/archives/partial"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "sources.list").write_text(wanted)
        if self.status is not None:
            self.status.touch()
        suites = ", ".join(source.suite for source in self.sources)
        with step(f"fetching the package lists of {suites}"):
            run_logged(
                ["apt-get", "-q", *self.options(), "-o", "APT::Update::Error-Mode=any", "update"],
                self.log,
                hint="Next step: check that this host's apt mirror is reachable and serves these suites; when a key is"
                " missing, bring debian-archive-keyring up to date.",
            )
        stamp.write_text(wanted)

    def names(self, prefix: str) -> list[str]:
        """Return the package names that start with ``prefix``."""
        return read_output(["apt-cache", *self.options(), "pkgnames", prefix]).split()

    def candidates(self, package: str) -> list[tuple[str, str]]:
        """Return (version, suite) of every version of ``package`` on offer, newest first."""
        text = read_output(["apt-cache", *self.options(), "madison", package])
        rows = [line.split("|") for line in text.splitlines()]
        return [(row[1].strip(), row[2].split()[1].split("/")[0]) for row in rows if len(row) == 3]

    def download(self, packages: Sequence[str], directory: Path) -> list[Path]:
        """Fetch packages into ``directory`` without installing them."""
        run_logged(
            ["apt-get", "-q", *self.options(), "download", *packages],
            self.log,
            cwd=directory,
            hint="Next step: try again; when the mirror has moved on, vm/run --clean fetches new lists.",
        )
        return sorted(directory.glob("*.deb"))

    def install(self, packages: Sequence[str], *, suite: str | None = None) -> None:
        """Install packages on this host, without recommendations."""
        target = ["-t", suite] if suite else []
        run_logged(
            [
                "apt-get",
                "-q",
                "-y",
                *self.options(),
                "--no-install-recommends",
                *target,
                "install",
                *packages,
            ],
            self.log,
            env={"DEBIAN_FRONTEND": "noninteractive"},
            # A dpkg killed half-way would leave this host to be mended by hand.
            dies_with_us=False,
            hint="Next step: read the log; install these packages by hand and start again.",
        )


def guest_apt(cache: Cache, uri: str, suites: Sequence[str]) -> Apt:
    """Return an apt that sees only ``suites`` of the mirror and nothing as installed, for downloads."""
    directory = cache.path("apt", "guest")
    return Apt(
        directory, tuple(Source(uri, suite) for suite in suites), cache.log("apt"), directory / "status"
    )
