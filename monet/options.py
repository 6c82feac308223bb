"""Options that several commands share, in groups."""

from __future__ import annotations


class Options:
    """Base of a group: a frozen dataclass whose fields are options of each command that takes it.

    A command's function has one parameter for the group. The command line and `--config` files name the fields without
    a prefix: `--device cpu`, not `--compute.device cpu`. The parameter's default holds the defaults of the options.
    """
