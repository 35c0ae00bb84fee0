"""The app image: a virtual environment with this project, and the system files that go over the root at boot.

Each step is keyed by its inputs: the wheels of all dependencies (``pyproject.toml``), a virtual environment with
them made by the guest's own Python in a chroot, the project's wheel (the working tree), and the image of both. The
image is mounted at /opt/agentcgroup; ``system/`` in it is copied over the root by ``preinit``.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vm import disk
from vm.cache import Cache, hash_files, hash_inputs
from vm.outcome import SetupError
from vm.project import Project, TreeChangedError, copy_files, read_project
from vm.rootfs import Root
from vm.steps import run_logged, say, step

# Raise this when what is put into the layers changes.
LAYER_FORMAT = "1"
GUEST_PYTHON = "3.13"
GUEST_GLIBC_MINOR = 41
PREFIX = "/opt/agentcgroup"
PROJECT_UNIT = "agentcgroup.service"
GUEST_FILES = Path(__file__).resolve().parent / "guest"
TREE_READ_TRIES = 5
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "-q")

# Whatever ends us takes all processes and mounts of this along.
CONTAINED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# Runs a command of the root with /opt/agentcgroup and /mnt/share bound to directories of ours, the rest read-only.
CHROOT = """
mount --bind "$TREE" "$TREE"
mount -o remount,bind,ro "$TREE"
mount --bind "$APP" "$TREE/opt/agentcgroup"
mount --bind "$SHARE" "$TREE/mnt/share"
mount -t tmpfs tmpfs "$TREE/tmp"
mount -t proc proc "$TREE/proc"
mount --rbind /dev "$TREE/dev"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8 PIP_CONFIG_FILE=/dev/null chroot "$TREE" "$@"
"""


def guest_files_key() -> str:
    """Return the key of everything of vm/ that goes into the guest by way of the app image."""
    package = GUEST_FILES.parent
    return hash_files(
        package,
        [
            package / "__init__.py",
            package / "channel.py",
            package / "tunnel.py",
            *(path for path in GUEST_FILES.iterdir() if path.is_file()),
        ],
    )


def ensure_app(cache: Cache, root: Root, tree: Path | None) -> Path:
    """Return the app image for a working tree (None: without the project), made of cached parts."""
    if tree is None:
        key = hash_inputs([LAYER_FORMAT, disk.LAYER_FORMAT, "bare", guest_files_key()])
        place = cache.layer("app-bare", key, lambda directory: _build_bare(cache, directory), keep=1)
        return place / "app.img"
    for _ in range(TREE_READ_TRIES):
        try:
            return _ensure_project(cache, root, read_project(tree))
        except TreeChangedError as error:
            say(f"{error}; reading the tree again")
    raise SetupError(f"{tree} changed each time it was read. Next step: start again when nobody edits it.")


def _ensure_project(cache: Cache, root: Root, project: Project) -> Path:
    environment_key = hash_inputs([LAYER_FORMAT, root.key, GUEST_PYTHON, *project.requires])
    wheel_key = hash_inputs([LAYER_FORMAT, project.key])
    key = hash_inputs([LAYER_FORMAT, disk.LAYER_FORMAT, environment_key, wheel_key, guest_files_key()])

    def build(directory: Path) -> None:
        environment = cache.layer(
            "environment", environment_key, lambda place: _build_environment(cache, root, project, place)
        )
        wheel = cache.layer("wheel", wheel_key, lambda place: _build_wheel(cache, project, place))
        with step("making the app image from the working tree"):
            _build_app(cache, root, environment, wheel, directory)

    on_wait = partial(say, "waiting for another vm/run that makes the app image")
    return cache.layer("app", key, build, keep=2, on_wait=on_wait) / "app.img"


def _builder_python(cache: Cache, requires: Sequence[str]) -> Path:
    """Return the Python of an environment on the host with these build requirements."""
    # The interpreter itself, not a virtual environment that happens to be active.
    python = os.path.realpath(sys.executable)

    def build(directory: Path) -> None:
        log = cache.log("builder")
        with step("making an environment to build the wheel in"):
            run_logged(
                [python, "-m", "venv", directory],
                log,
                hint="Next step: apt-get install python3-venv",
            )
            run_logged(
                [directory / "bin/python", *PIP, "install", *requires],
                log,
                hint="Next step: check that pip on this host reaches its package index.",
            )

    key = hash_inputs([LAYER_FORMAT, sys.version, python, *requires])
    return cache.layer("builder", key, build, keep=1) / "bin/python"


def _build_wheel(cache: Cache, project: Project, directory: Path) -> None:
    """Build the wheel in a copy of the tree, so that the tree stays as it is."""
    python = _builder_python(cache, project.build_requires)
    with step("building the project's wheel"), tempfile.TemporaryDirectory(dir=directory) as scratch:
        copy = Path(scratch) / "tree"
        copy_files(project, copy)
        run_logged(
            [
                python,
                *PIP,
                *["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"],
                directory,
                copy,
            ],
            cache.log("wheel"),
            env={"PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"},
            hint="Next step: mend the build of the working tree, or use --bare to boot without the project.",
        )
    if len(list(directory.glob("*.whl"))) != 1:
        raise SetupError(
            f"building the wheel made {len(list(directory.glob('*.whl')))} wheels in {directory}, not one"
        )


def _build_environment(cache: Cache, root: Root, project: Project, directory: Path) -> None:
    log = cache.log("environment")
    python = _builder_python(cache, project.build_requires)
    wheels, prefix = directory / "wheels", directory / "prefix"
    wheels.mkdir()
    prefix.mkdir()
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(GUEST_GLIBC_MINOR, 4, -1)]
    platforms += [
        "--platform=manylinux2014_x86_64",
        "--platform=manylinux2010_x86_64",
        "--platform=manylinux1_x86_64",
    ]
    with step(f"fetching the dependencies for Python {GUEST_PYTHON}"):
        run_logged(
            [
                python,
                *PIP,
                "download",
                "--only-binary=:all:",
                "--implementation=cp",
                f"--python-version={GUEST_PYTHON}",
                f"--abi=cp{GUEST_PYTHON.replace('.', '')}",
                "--abi=abi3",
                "--abi=none",
                *platforms,
                "--dest",
                wheels,
                *project.requires,
            ],
            log,
            hint="Next step: check that pip on this host reaches its package index.",
        )
    with step("installing the dependencies with the guest's Python"):
        run_in_root(root, prefix, wheels, ["python3", "-m", "venv", PREFIX], log)
        run_in_root(
            root,
            prefix,
            wheels,
            [
                f"{PREFIX}/bin/python",
                *PIP,
                "install",
                "--no-index",
                "--find-links=/mnt/share",
                *project.requires,
            ],
            log,
        )


def _build_app(cache: Cache, root: Root, environment: Path, wheel: Path, directory: Path) -> None:
    log = cache.log("app")
    prefix = directory / "prefix"
    # Hard links: pip adds files to the copy and replaces none in place.
    run_logged(["cp", "-al", environment / "prefix", prefix], log)
    name = next(wheel.glob("*.whl")).name
    run_in_root(
        root,
        prefix,
        wheel,
        [f"{PREFIX}/bin/python", *PIP, "install", "--no-index", "--no-deps", f"/mnt/share/{name}"],
        log,
    )
    system = prefix / "system"
    _put_guest_files(system)
    _put_project_files(prefix, system)
    disk.make_image(directory / "app.img", prefix, log)
    shutil.rmtree(prefix)


def _build_bare(cache: Cache, directory: Path) -> None:
    prefix = directory / "prefix"
    _put_guest_files(prefix / "system")
    disk.make_image(directory / "app.img", prefix, cache.log("app"))
    shutil.rmtree(prefix)


def _put_guest_files(system: Path) -> None:
    """Put the agent and the units of the guest into ``system``."""
    package = GUEST_FILES.parent
    place = system / "usr/lib/agentcgroup-vm/vm"
    (place / "guest").mkdir(parents=True)
    for name in ("__init__.py", "channel.py", "tunnel.py", "guest/__init__.py", "guest/agent.py"):
        shutil.copyfile(package / name, place / name)
    units = system / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    for unit in sorted(GUEST_FILES.glob("*.service")):
        shutil.copyfile(unit, units / unit.name)
    (units / "multi-user.target.wants/vm-agent.service").symlink_to("../vm-agent.service")


def _put_project_files(prefix: Path, system: Path) -> None:
    """Put the project's commands on PATH and its systemd unit and configuration where they belong, enabled."""
    commands = system / "usr/local/bin"
    commands.mkdir(parents=True)
    for path in sorted((prefix / "bin").glob("agentcg*")):
        (commands / path.name).symlink_to(f"{PREFIX}/bin/{path.name}")
    daemon = prefix / f"lib/python{GUEST_PYTHON}/site-packages/agentcgroup/daemon"
    units = system / "etc/systemd/system"
    for unit in sorted(daemon.glob("*.service")):
        shutil.copyfile(unit, units / unit.name)
        (units / "multi-user.target.wants" / unit.name).symlink_to(f"../{unit.name}")
    for configuration in sorted(daemon.glob("*.toml")):
        (system / "etc/agentcgroup").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(configuration, system / "etc/agentcgroup" / configuration.name)


def run_in_root(root: Root, app: Path, share: Path, command: Sequence[str], log: Path) -> None:
    """Run a command of the guest's root on this host, in a mount namespace of its own that leaves the root unchanged."""
    run_logged(
        [*CONTAINED, "sh", "-eu", "-c", CHROOT, "sh", *command],
        log,
        env={"TREE": str(root.tree), "APP": str(app), "SHARE": str(share)},
        hint="Next step: read the log; mounting and chroot must be allowed here (not in an unprivileged container).",
    )
