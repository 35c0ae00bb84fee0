"""The root: a trixie made by mmdebstrap, as a directory to chroot into and as the disk image the guest boots from.

It holds Debian's packages and what must be there before any other disk is mounted (``guest/preinit``). Everything of
this project, also the units that run the command, comes with the app image (``vm.app``), so that this layer stays.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from vm import disk
from vm.cache import Cache, hash_inputs
from vm.packages import Source, host_sources, require_debian, require_root, transport_settings
from vm.steps import run_logged, say, step

SUITE = "trixie"
# Raise this when what is put into the layer changes.
LAYER_FORMAT = "1"
IMAGE_BYTES = 12 * 1024 * disk.MIB
GUEST_FILES = Path(__file__).resolve().parent / "guest"

PACKAGES = (
    # a system that boots and can be looked into
    "systemd", "systemd-sysv", "dbus", "udev", "kmod", "procps", "iproute2", "util-linux", "mount", "strace", "less",
    "e2fsprogs", "psmisc",
    # what the project runs on and is tested with
    "python3", "python3-venv", "docker.io", "docker-cli", "prometheus", "busybox-static", "ca-certificates",
    # what agents' tools need
    "gcc", "make", "libc6-dev", "git", "xz-utils",
)

# They slow the boot down or print over the console, and no test needs them.
MASKED_UNITS = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "fstrim.timer", "logrotate.timer", "man-db.timer", "systemd-tmpfiles-clean.timer", "motd-news.timer",
    "serial-getty@ttyS0.service", "getty@tty1.service", "console-getty.service", "getty-static.service",
    "systemd-networkd.service", "systemd-networkd.socket", "systemd-network-generator.service",
    "systemd-networkd-wait-online.service", "systemd-resolved.service", "systemd-timesyncd.service", "networking.service",
    "systemd-logind.service", "systemd-user-sessions.service", "systemd-machine-id-commit.service",
    "systemd-firstboot.service", "systemd-hwdb-update.service", "ldconfig.service", "systemd-journal-catalog-update.service",
    "systemd-update-done.service", "systemd-update-utmp.service", "systemd-random-seed.service", "systemd-pstore.service",
    "systemd-binfmt.service", "systemd-journal-flush.service", "systemd-boot-random-seed.service",
    "modprobe@configfs.service", "modprobe@drm.service", "modprobe@efi_pstore.service", "modprobe@fuse.service",
    "modprobe@dm_mod.service", "modprobe@loop.service", "kmod-static-nodes.service",
    "sys-kernel-debug.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "dev-hugepages.mount",
    "dev-mqueue.mount", "proc-sys-fs-binfmt_misc.automount", "proc-sys-fs-binfmt_misc.mount",
    "sysstat.service", "prometheus-node-exporter.service",
)

# One file each: path in the root, content.
FILES = {
    "etc/hostname": "agentcgroup-vm\n",
    "etc/hosts": "127.0.0.1 localhost agentcgroup-vm\n::1 localhost ip6-localhost\n",
    "etc/resolv.conf": "",
    # A fixed id: an empty one makes systemd treat every boot as the first one and apply all presets.
    "etc/machine-id": "a6e47c6700b34c0f8a5d0c1d2e3f4a5b\n",
    "etc/fstab": "",
    "etc/systemd/journald.conf.d/vm.conf": "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nAudit=no\n",
    "etc/systemd/system.conf.d/vm.conf": "[Manager]\nDefaultTimeoutStopSec=10s\nDefaultTasksMax=infinity\n",
    # There is no network: no bridge to make and no rules to set.
    "etc/docker/daemon.json": '{"bridge": "none", "iptables": false, "ip6tables": false, "ip-forward": false}\n',
    "etc/systemd/system-preset/00-vm.preset": "disable *\n",
}


@dataclass(frozen=True, slots=True)
class Root:
    """The root layer: its key, the directory (to chroot into, never to change) and the image made of it."""

    key: str
    tree: Path
    image: Path


def root_key() -> str:
    """Return the key of the root layer: packages, settings and the preinit script."""
    preinit = (GUEST_FILES / "preinit").read_bytes()
    files = [text for item in sorted(FILES.items()) for text in item]
    return hash_inputs([LAYER_FORMAT, disk.LAYER_FORMAT, SUITE, *PACKAGES, "masked", *MASKED_UNITS, "files", *files, preinit])


def ensure_root(cache: Cache) -> Root:
    """Return the root layer, made when the cache has none for these inputs."""
    key = root_key()
    place = cache.layer("root", key, lambda directory: _build(cache, directory), keep=1,
                        on_wait=lambda: say("waiting for another vm/run that makes the root image"))
    return Root(key, place / "tree", place / "root.img")


def _build(cache: Cache, directory: Path) -> None:
    require_root("making the guest's root (mmdebstrap unpacks and configures packages in a chroot)")
    mirror = host_sources(require_debian().codename)[0].uri
    log = cache.log("root")
    log.unlink(missing_ok=True)
    tree = directory / "tree"
    with step(f"making the {SUITE} root with {len(PACKAGES)} packages and what they need"):
        _bootstrap(mirror, tree, log)
        _customise(tree, log)
    with step("making the root image"):
        disk.make_root_image(directory / "root.img", tree, log, IMAGE_BYTES)


def _bootstrap(mirror: str, tree: Path, log: Path) -> None:
    options = [f"--aptopt={line}" for line in transport_settings()]
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "info", "locale", "lintian")]
    # dpkg flushes every file otherwise; a half-made root is thrown away anyway.
    options.append("--dpkgopt=force-unsafe-io")
    run_logged(
        ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--architectures=amd64",
         f"--include={','.join(PACKAGES)}", "--aptopt=Acquire::Languages \"none\"", *options, SUITE, tree,
         Source(mirror, SUITE).line().strip()], log,
        hint="Next step: check that the mirror of this host's apt serves trixie, and start again.",
    )


def _customise(tree: Path, log: Path) -> None:
    for name, content in FILES.items():
        path = tree / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    preinit = tree / "usr/lib/agentcgroup-vm/preinit"
    preinit.parent.mkdir(parents=True)
    shutil.copyfile(GUEST_FILES / "preinit", preinit)
    preinit.chmod(0o755)
    run_logged(["chroot", tree, "systemctl", "preset-all"], log)
    run_logged(["chroot", tree, "systemctl", "mask", *MASKED_UNITS], log)
    run_logged(["chroot", tree, "systemctl", "set-default", "multi-user.target"], log)
    for mountpoint in ("opt/agentcgroup", "mnt/out", "mnt/share"):
        (tree / mountpoint).mkdir(parents=True, exist_ok=True)
    for waste in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        shutil.rmtree(tree / waste, ignore_errors=True)
        (tree / waste).mkdir(parents=True)
