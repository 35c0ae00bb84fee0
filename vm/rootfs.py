"""The root: a trixie made by mmdebstrap, as a directory to chroot into and as the disk image the guest boots from.

It is made of what ``vm/root`` says: ``packages.txt``, ``masked-units.txt`` and ``files``, a tree that is copied over
it. What comes from this project, also the units that run the command, is in the app image (``vm.app``), so that this
layer, the slowest to make, stays.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from vm import disk
from vm.cache import Cache, hash_files, hash_inputs
from vm.packages import Source, host_sources, require_debian, transport_settings
from vm.steps import run_logged, say, step

SUITE = "trixie"
# Raise this when what is put into the layer changes.
LAYER_FORMAT = "3"
IMAGE_BYTES = 12 * 1024 * disk.MIB
INPUTS = Path(__file__).resolve().parent / "root"
FILES = INPUTS / "files"
# Documentation and translations, which nobody reads in a guest.
LEFT_OUT = ("doc", "man", "info", "locale", "lintian")


@dataclass(frozen=True, slots=True)
class Root:
    """The root layer: its key, the directory (to chroot into, never to change) and the image made of it."""

    key: str
    tree: Path
    image: Path


def read_list(path: Path) -> list[str]:
    """Return the lines of a file, without empty ones and comments."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def root_key() -> str:
    """Return the key of the root layer: everything in ``vm/root``."""
    inputs = (path for path in INPUTS.rglob("*") if path.is_file())
    return hash_inputs([LAYER_FORMAT, disk.LAYER_FORMAT, SUITE, hash_files(INPUTS, inputs)])


def ensure_root(cache: Cache) -> Root:
    """Return the root layer, made when the cache has none for these inputs."""
    key = root_key()
    place = cache.layer(
        "root",
        key,
        lambda directory: _build(cache, directory),
        keep=2,
        on_wait=lambda: say("waiting for another vm/run that makes the root image"),
    )
    return Root(key, place / "tree", place / "root.img")


def _build(cache: Cache, directory: Path) -> None:
    mirror = host_sources(require_debian().codename)[0].uri
    log = cache.log("root")
    log.unlink(missing_ok=True)
    tree = directory / "tree"
    packages = read_list(INPUTS / "packages.txt")
    with step(f"making the {SUITE} root with {len(packages)} packages and what they need"):
        _bootstrap(mirror, packages, tree, log)
        _customise(tree, log)
    with step("making the root image"):
        disk.make_root_image(directory / "root.img", tree, log, IMAGE_BYTES)


def _bootstrap(mirror: str, packages: list[str], tree: Path, log: Path) -> None:
    options = [f"--aptopt={line}" for line in transport_settings()]
    options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in LEFT_OUT]
    # dpkg flushes every file otherwise; a half-made root is thrown away anyway.
    options.append("--dpkgopt=force-unsafe-io")
    run_logged(
        [
            # In namespaces of its own: whatever ends us takes all of its processes and mounts along.
            *["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"],
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--architectures=amd64",
            f"--include={','.join(packages)}",
            '--aptopt=Acquire::Languages "none"',
            *options,
            SUITE,
            tree,
            Source(mirror, SUITE).line().strip(),
        ],
        log,
        hint="Next step: check that the mirror of this host's apt serves trixie, and start again.",
    )


def _customise(tree: Path, log: Path) -> None:
    for source in sorted(path for path in FILES.rglob("*") if path.is_file()):
        target = tree / source.relative_to(FILES)
        target.unlink(missing_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    run_logged(["chroot", tree, "systemctl", "preset-all"], log)
    run_logged(["chroot", tree, "systemctl", "mask", *read_list(INPUTS / "masked-units.txt")], log)
    run_logged(["chroot", tree, "systemctl", "set-default", "multi-user.target"], log)
    # Started by its socket when somebody asks for it.
    (tree / "usr/lib/systemd/system/multi-user.target.wants/dbus.service").unlink(missing_ok=True)
    # Each is a process at every start of systemd, and there is nothing here to generate units from.
    masked_generators = tree / "etc/systemd/system-generators"
    masked_generators.mkdir(parents=True)
    for generator in sorted((tree / "usr/lib/systemd/system-generators").iterdir()):
        (masked_generators / generator.name).symlink_to("/dev/null")
    for mountpoint in ("opt/agentcgroup", "mnt/out", "mnt/share"):
        (tree / mountpoint).mkdir(parents=True, exist_ok=True)
    for waste in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        shutil.rmtree(tree / waste, ignore_errors=True)
        (tree / waste).mkdir(parents=True)
