"""The two things setuptools cannot be told in pyproject.toml: generate code first, and ship the native launcher.

`agentcg` is a static C program and the door a C library, so the wheel carries a platform tag but no Python ABI.
"""

import os
import shutil
import subprocess
import sys

from setuptools import setup  # isort: skip  (it provides distutils, so it comes first)

from distutils.command.build_scripts import build_scripts

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

LAUNCHER = "src/agentcgroup/client/launcher/agentcg"


class GenerateThenBuildPy(build_py):
    def run(self) -> None:
        # The interpreter that builds has the generator; a .venv beside the sources may be another one.
        subprocess.run(
            ["make", "--no-print-directory", "generate", "door", f"PYTHON={sys.executable}"], check=True
        )
        super().run()


class ShipLauncher(build_scripts):
    """setuptools would read a script's first line as text; this one is an ELF file."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.scripts = [LAUNCHER]

    def run(self) -> None:
        subprocess.run(["make", "--no-print-directory", "launcher"], check=True)
        os.makedirs(self.build_dir, exist_ok=True)
        target = os.path.join(self.build_dir, os.path.basename(LAUNCHER))
        shutil.copyfile(LAUNCHER, target)
        os.chmod(target, 0o755)


class PlatformWheel(bdist_wheel):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


setup(
    scripts=[LAUNCHER],
    cmdclass={"build_py": GenerateThenBuildPy, "build_scripts": ShipLauncher, "bdist_wheel": PlatformWheel},
)
