"""Keys and columns of a record: nested keys, and several keys whose texts form one document."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from monet.errors import ConfigError

BETWEEN = "\n\n"  # separates the texts of several keys
_ABSENT = object()


def check_keys(text_key: str, source_key: str) -> None:
    """Refuse invalid key names.

    Raises:
        ConfigError: the text key is empty, is named twice, or equals the source key.
    """
    keys = split_keys(text_key)
    if not all(keys) or len(set(keys)) < len(keys):
        raise ConfigError(f"text_key {text_key!r} must name different keys, with a comma between them")
    if source_key in keys:
        raise ConfigError(f"text_key {text_key!r} and source_key {source_key!r} must name different keys")


def split_keys(text_key: str, names: Collection[str] = ()) -> list[str]:
    """Split "title,body" into its keys; if `names` contains the whole string, it is one key."""
    return [text_key] if text_key in names else [key.strip() for key in text_key.split(",")]


def value_at(record: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return the value of a key, or of a path of keys such as "data.text"; return `default` if it is absent."""
    if key in record:
        return record[key]
    value: Any = record
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


def text_at(record: dict[str, Any], text_key: str) -> str | None:
    """Return the text of a record; None if it has none, see `missing_text`.

    All of several keys must exist. Their texts are joined with a blank line; null and empty texts are left out.
    """
    return joined([value_at(record, key, _ABSENT) for key in split_keys(text_key, record)])


def joined(values: Sequence[Any]) -> str | None:
    """Join the texts of a record's keys; None unless at least one value is text and every other is text or null."""
    if len(values) == 1:
        return values[0] if isinstance(values[0], str) else None
    texts = [value for value in values if isinstance(value, str)]
    if not texts or not all(value is None or isinstance(value, str) for value in values):
        return None
    return BETWEEN.join(text for text in texts if text)


def missing_text(record: object, text_key: str) -> str:
    """Explain why a record has no text."""
    if not isinstance(record, dict):
        return f"the record is {type(record).__name__}, not an object with the key {text_key!r}"
    values = {key: value_at(record, key, _ABSENT) for key in split_keys(text_key, record)}
    if absent := [key for key, value in values.items() if value is _ABSENT]:
        return no_key(absent[0], list(record))
    return not_text(values)


def not_text(values: dict[str, Any]) -> str:
    """Return the message for values of which none is text, or one is not text or null."""
    wrong = {key: value for key, value in values.items() if value is not None and not isinstance(value, str)} or values
    key, value = next(iter(wrong.items()))
    return f"the value of {key!r} is {type(value).__name__}, not text"


def no_key(text_key: str, keys: Sequence[str]) -> str:
    """Return the message for a record or a table that lacks the text key."""
    return f"no key {text_key!r} among {sorted(keys)[:10]}; name the right one with --text_key"
