"""The app image: a virtual environment with this project, and the system files that go over the root at boot.

Each step is keyed by its inputs: the wheels of all dependencies (``pyproject.toml``), a virtual environment with
them made by the guest's own Python in a chroot, the project's wheel (the working tree), and the image of both. The
image is mounted at /opt/agentcgroup; ``system/`` in it is copied over the root by ``preinit``.
"""

import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vm import disk
from vm.cache import Cache, hash_files, hash_inputs
from vm.outcome import SetupError
from vm.rootfs import Root
from vm.steps import read_output, run_logged, say, step

# Raise this when what is put into the layers changes.
LAYER_FORMAT = "1"
GUEST_PYTHON = "3.13"
GUEST_GLIBC_MINOR = 41
EXTRAS = ("daemon", "test")
PREFIX = "/opt/agentcgroup"
PROJECT_UNIT = "agentcgroup.service"
GUEST_FILES = Path(__file__).resolve().parent / "guest"
# What no wheel is made of: changing it must not cost a rebuild.
NOT_IN_WHEEL = frozenset(
    {"vm", "tests", "docs", "bench", "demo", ".ci", ".github", "build", "CHANGELOG.md", ".gitignore"}
)
# Left out of a tree that git does not describe.
NEVER_SOURCE = frozenset(
    {".git", ".venv", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
)
NAME_OF_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")
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


@dataclass(frozen=True, slots=True)
class Project:
    """What the wheel is made from: the tree, its files, and what pyproject.toml asks for."""

    root: Path
    files: tuple[Path, ...]
    build_requires: tuple[str, ...]
    requires: tuple[str, ...]


def source_files(root: Path) -> tuple[Path, ...]:
    """Return the files of the working tree that a wheel may need: tracked or not, but not what git ignores."""
    if (root / ".git").exists() and shutil.which("git"):
        # The tree may belong to another user than root, who runs this; git refuses that unless told.
        names = read_output(
            [
                "git",
                "-c",
                "safe.directory=*",
                "-C",
                root,
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ]
        ).split("\0")
        found = {root / name for name in names if name}
    else:
        found = set(_walk(root))
    kept = (path for path in found if path.relative_to(root).parts[0] not in NOT_IN_WHEEL)
    return tuple(sorted(path for path in kept if path.is_symlink() or path.is_file()))


def _walk(root: Path) -> Iterable[Path]:
    for base, directories, names in os.walk(root):
        for name in list(directories):
            if (Path(base) / name).is_symlink():
                yield Path(base) / name
        directories[:] = [name for name in directories if name not in NEVER_SOURCE]
        yield from (Path(base) / name for name in names if not name.endswith(".pyc"))


def all_requirements(
    name: str, dependencies: Sequence[str], optional: dict[str, list[str]], extras: Sequence[str]
) -> tuple[str, ...]:
    """Return the requirements of a project with these extras; an extra may name others of the same project."""
    wanted = list(dependencies)
    pending, seen = list(extras), set[str]()
    while pending:
        extra = pending.pop(0)
        if extra in seen:
            continue
        seen.add(extra)
        if extra not in optional:
            raise SetupError(
                f"pyproject.toml has no extra {extra!r}. Next step: add it to [project.optional-dependencies]."
            )
        for requirement in optional[extra]:
            found = NAME_OF_REQUIREMENT.match(requirement)
            if found and found[1].lower() == name.lower():
                pending += [word.strip() for word in (found[2] or "").split(",") if word.strip()]
            else:
                wanted.append(requirement)
    return tuple(sorted(set(wanted)))


def read_project(root: Path) -> Project:
    """Read what is needed of a working tree; raises SetupError when it has no usable pyproject.toml."""
    path = root / "pyproject.toml"
    try:
        table = tomllib.loads(path.read_text())
        project = table["project"]
        return Project(
            root,
            source_files(root),
            tuple(table["build-system"]["requires"]),
            all_requirements(
                project["name"],
                project.get("dependencies", []),
                project.get("optional-dependencies", {}),
                EXTRAS,
            ),
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise SetupError(
            f"cannot read the project from {path}: {error!r}. Next step: mend it, or use --bare."
        ) from error


def guest_files_key() -> str:
    """Return the key of everything of vm/ that goes into the guest by way of the app image."""
    package = GUEST_FILES.parent
    return hash_files(
        package,
        [
            package / "__init__.py",
            package / "channel.py",
            *(path for path in GUEST_FILES.iterdir() if path.is_file()),
        ],
    )


def ensure_app(cache: Cache, root: Root, project: Project | None) -> Path:
    """Return the app image for the working tree (None: without the project), made of cached parts."""
    if project is None:
        key = hash_inputs([LAYER_FORMAT, disk.LAYER_FORMAT, "bare", guest_files_key()])
        place = cache.layer("app-bare", key, lambda directory: _build_bare(cache, directory), keep=1)
        return place / "app.img"
    environment_key = hash_inputs([LAYER_FORMAT, root.key, GUEST_PYTHON, *project.requires])
    wheel_key = hash_inputs([LAYER_FORMAT, hash_files(project.root, project.files)])
    key = hash_inputs([LAYER_FORMAT, disk.LAYER_FORMAT, environment_key, wheel_key, guest_files_key()])

    def build(directory: Path) -> None:
        environment = cache.layer(
            "environment", environment_key, lambda place: _build_environment(cache, root, project, place)
        )
        wheel = cache.layer("wheel", wheel_key, lambda place: _build_wheel(cache, project, place))
        with step("making the app image from the working tree"):
            _build_app(cache, root, environment, wheel, directory)

    place = cache.layer(
        "app", key, build, keep=2, on_wait=lambda: say("waiting for another vm/run that makes the app image")
    )
    return place / "app.img"


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
        for path in project.files:
            target = copy / path.relative_to(project.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)
        run_logged(
            [
                python,
                *PIP,
                "wheel",
                "--no-deps",
                "--no-build-isolation",
                "--no-index",
                "--wheel-dir",
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
    for name in ("__init__.py", "channel.py", "guest/__init__.py", "guest/agent.py"):
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
