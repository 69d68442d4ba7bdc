"""Makes an installed environment small and the same at each build: python tidy.py /opt/selector

It removes what is needed only to build against the packages or to test them, and compiles the rest, since nothing is
written at run time. Compiled files name their source's hash instead of the time it was installed.
"""

import compileall
import py_compile
import shutil
import sys
from pathlib import Path

# These lie below site-packages. `torch/testing`, `numpy/testing` and `torch/bin` stay, as importing the packages
# needs them.
UNUSED = [
    "torch/include",  # C++ headers
    "torch/share",  # CMake's files
    "torch/test",
    "*/**/tests",
]


def unused(packages: Path) -> list[Path]:
    """Returns the folders of site-packages that nothing imports."""
    return [folder for pattern in UNUSED for folder in sorted(packages.glob(pattern)) if folder.is_dir()]


def main(environment: str) -> int:
    [packages] = Path(environment).glob("lib/python3*/site-packages")
    for folder in unused(packages):
        shutil.rmtree(folder, ignore_errors=True)  # one may lie in another
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    # Packages hold templates and the syntax of other Python versions, which do not compile and need not.
    compileall.compile_dir(packages, quiet=2, workers=0, force=True, invalidation_mode=mode)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
