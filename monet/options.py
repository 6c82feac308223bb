"""Groups of options that several commands share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints


class Options:
    """Base of a group: a frozen dataclass whose fields are options of each command that uses the group.

    A command's function has one parameter for the group. The command line and `--config` files use the field names
    without a prefix: `--device cpu`, not `--compute.device cpu`. The parameter's default holds the option defaults.
    """


def groups_of(target: Callable[..., Any]) -> dict[str, type[Any]]:
    """The parameters of a command's function that are groups, with their classes."""
    kinds = get_type_hints(target)
    return {name: kind for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, Options)}


def types_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Each option of a command and its type; a group contributes its fields."""
    groups = groups_of(target)
    own = {name: kind for name, kind in get_type_hints(target).items() if name not in groups and name != "return"}
    return own | {name: kind for group in groups.values() for name, kind in get_type_hints(group).items()}


def defaults_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Defaults of the options in groups, for each group that has a default."""
    defaults = {name: one.default for name, one in inspect.signature(target).parameters.items()}
    return {
        field.name: getattr(defaults[name], field.name)
        for name, group in groups_of(target).items()
        if defaults[name] is not inspect.Parameter.empty
        for field in dataclasses.fields(group)
    }


def arguments_of(target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by name -> arguments of a command's function; groups are built from their fields."""
    arguments = {**defaults_of(target), **options}
    for name, group in groups_of(target).items():
        fields = [field.name for field in dataclasses.fields(group)]
        arguments[name] = group(**{field: arguments.pop(field) for field in fields if field in arguments})
    return arguments
