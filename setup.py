"""The package rule that pyproject.toml cannot express: `kernels/`, `eval/` install as `monet.kernels`, `monet.eval`.

Neither folder has an `__init__.py` (docs/architecture.md gives the reason). Every folder of Python files is a package.
"""

from pathlib import Path

from setuptools import setup

FOLDERS = {"monet": "monet", "monet.kernels": "kernels", "monet.eval": "eval"}

root = Path(__file__).resolve().parent
packages = {
    ".".join([package, *path.parent.relative_to(root / folder).parts])
    for package, folder in FOLDERS.items()
    for path in (root / folder).rglob("*.py")
}

setup(packages=sorted(packages), package_dir=FOLDERS)
