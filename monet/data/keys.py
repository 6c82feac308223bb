"""Keys and columns of a record: keys inside keys, and several keys whose texts make one document."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from monet.errors import ConfigError

BETWEEN = "\n\n"  # stands between the texts of several keys
_ABSENT = object()


def check_keys(text_key: str, source_key: str) -> None:
    """Refuse names of keys that cannot be meant.

    Raises:
        ConfigError: the text's key is empty or named twice, or is that of the source.
    """
    keys = split_keys(text_key)
    if not all(keys) or len(set(keys)) < len(keys):
        raise ConfigError(f"text_key {text_key!r} must name different keys, with a comma between them")
    if source_key in keys:
        raise ConfigError(f"text_key {text_key!r} and source_key {source_key!r} must name different keys")


def split_keys(text_key: str, names: Collection[str] = ()) -> list[str]:
    """The keys in "title,body"; only one if it stands among `names` as it is."""
    return [text_key] if text_key in names else [key.strip() for key in text_key.split(",")]


def value_at(record: dict[str, Any], key: str, default: Any = None) -> Any:
    """The value of a key, or of a path of keys such as "data.text"; `default` where there is none."""
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


def text_at(record: dict[str, Any], text_key: str) -> str | None:
    """The text of a record; None if there is none, see `missing_text`.

    Several keys must all be there. Their texts are joined with a blank line between; a null or empty one is left out.
    """
    return joined([value_at(record, key, _ABSENT) for key in split_keys(text_key, record)])


def joined(values: Sequence[Any]) -> str | None:
    """The texts of the keys of a record as one; None unless each is text or null, and one is text."""
    if len(values) == 1:
        return values[0] if isinstance(values[0], str) else None
    texts = [value for value in values if isinstance(value, str)]
    if not texts or not all(value is None or isinstance(value, str) for value in values):
        return None
    return BETWEEN.join(text for text in texts if text)


def missing_text(record: object, text_key: str) -> str:
    """Why a record has no text."""
    if not isinstance(record, dict):
        return f"the record is {type(record).__name__}, not an object with the key {text_key!r}"
    values = {key: value_at(record, key, _ABSENT) for key in split_keys(text_key, record)}
    if absent := [key for key, value in values.items() if value is _ABSENT]:
        return no_key(absent[0], list(record))
    return not_text(values)


def not_text(values: dict[str, Any]) -> str:
    """Words for values of which none is text, or one is neither text nor null."""
    wrong = {key: value for key, value in values.items() if value is not None and not isinstance(value, str)} or values
    key, value = next(iter(wrong.items()))
    return f"the value of {key!r} is {type(value).__name__}, not text"


def no_key(text_key: str, keys: Sequence[str]) -> str:
    """Message: none of a record's keys, or of a table's columns, is the text's."""
    return f"no key {text_key!r} among {sorted(keys)[:10]}; name the right one with --text_key"
