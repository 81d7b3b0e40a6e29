"""Build script: metadata is in pyproject.toml; here is how the compiled kernels get into a wheel.

Without nvcc (or with SECATEUR_NO_CUDA=1) there is nothing to build, and the wheel is pure Python.
"""

import importlib.util
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

_spec = importlib.util.spec_from_file_location("secateur_csrc_build", ROOT / "csrc" / "build.py")
assert _spec is not None
assert _spec.loader is not None
library = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(library)


class BuildLibrary(build_ext):
    """Puts the library beside the modules of secateur_kernels; it is no extension module."""

    def build_extension(self, ext: Extension) -> None:
        built, _ = library.build(self.distribution.get_version())
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(built, target)

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1]) / library.NAME)


class WheelForAnyPython(bdist_wheel):
    """The library holds no Python symbol: one wheel for every Python of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if library.enabled():
    setup(
        ext_modules=[Extension("secateur_kernels.libsecateur_cuda", sources=[])],
        cmdclass={"build_ext": BuildLibrary, "bdist_wheel": WheelForAnyPython},
    )
else:
    setup()
