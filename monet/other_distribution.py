"""Stops the import of this package if the distribution `monet` is installed too.

This project is installed as `monet-experts`. On PyPI `monet` is another project, whose files are in the same folder,
site-packages/monet: each overwrites files of the other. The installed records show this; reading them imports nothing.
If the other project was installed last, `import monet` runs its code and not this check; the remedy is the same.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable


def refuse_other_distribution(folders: Iterable[str] | None = None) -> None:
    """Look for the other distribution in `folders`, by default the folders that Python imports from; takes under 1 ms.

    An editable installation of this project under its former name, `monet`, owns no file of the package and is allowed.

    Raises:
        ImportError: a distribution named `monet` owns monet/__init__.py.
    """
    for folder in sys.path if folders is None else folders:
        if not isinstance(folder, str):  # Python does not import from such an entry
            continue
        for record in glob.iglob(os.path.join(glob.escape(folder or "."), "monet-[0-9]*.dist-info", "RECORD")):
            try:
                with open(record, encoding="utf-8", errors="replace") as lines:
                    if not any(line.startswith("monet/__init__.py,") for line in lines):
                        continue
            except OSError:  # an unreadable record shows nothing
                continue
            raise ImportError(
                f"{os.path.dirname(os.path.abspath(record))}: the distribution 'monet' is another project, or an old "
                "release of this one. Its files and this package's are in one folder. Remove it with `pip uninstall "
                "monet`, then install monet-experts again: `pip install --force-reinstall --no-deps` with your wheel "
                "or the path of your clone."
            )
