"""Counts of a preparation for the manifest; counts of several parts are added up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypedDict

from monet.data.documents.originals import Originals
from monet.data.documents.records import END_OF_TEXT
from monet.data.documents.sources import Skipped
from monet.data.tokens.fidelity import notes_on_loss

Entries = dict[str, dict[str, list[dict[str, Any]]]]


class Counted(TypedDict):
    """Counts of one preparation; can be written as JSON.

    Attributes:
        skipped: state of the reader's `Skipped`.
        originals: state of `Originals`.
        fidelity: state of `Fidelity`.
        tokenizer_notes: sentences about the tokenizer.
        commits: commit of each dataset, by its uri.
        throughput: from `monet.data.preparation.batches.Written`.
    """

    skipped: dict[str, Any]
    originals: dict[str, Any]
    fidelity: dict[str, Any]
    tokenizer_notes: list[str]
    commits: dict[str, str]
    throughput: dict[str, Any]


def summary(counted: Counted, entries: Entries, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest's keys: skipped items, settings, throughput, tokenizer losses, notes, commits.

    Args:
        counted: counts for the whole preparation.
        entries: entries of the shards, by split and domain.
        settings: settings of the preparation.
    """
    skipped, fidelity = Skipped(), counted["fidelity"]
    skipped.restore(counted["skipped"])
    left_out = skipped.counts + Counter(fidelity["skipped"]["counts"])
    found: dict[str, Any] = {
        "skipped": {
            "counts": dict(sorted(left_out.items())),
            "examples": skipped.messages + fidelity["skipped"]["messages"],
        },
        "settings": settings,
        "throughput": counted["throughput"],
        "fidelity": fidelity["domains"],
    }
    if notes := _notes(counted, entries, settings, skipped) + notes_on_loss(fidelity["domains"]):
        found["notes"] = notes
    if counted["commits"]:
        found["commits"] = counted["commits"]
    return found


def _notes(counted: Counted, entries: Entries, settings: dict[str, Any], skipped: Skipped) -> list[str]:
    """Return sentences about results that follow the settings but may not be intended."""
    notes = [*counted["tokenizer_notes"], *Originals(settings["source_key"], counted["originals"]).notes()]
    for domain in sorted(entries["train"]):
        if empty := [split for split, domains in entries.items() if not domains[domain]]:
            notes.append(f"domain {domain!r} has no document in {', '.join(empty)}")
    if marked := skipped.notes[END_OF_TEXT]:
        notes.append(
            f"{marked} plain text file(s) contain {END_OF_TEXT} more than once and were read as one document each; "
            f"if it separates documents, prepare again with --document_separator '{END_OF_TEXT}'"
        )
    return notes


def added(parts: Sequence[Counted]) -> Counted:
    """Add up the counts of all parts.

    Seconds are summed over all processes, so the throughput is that of one process.

    Args:
        parts: counts of at least one part, in the order of the text.
    """
    skipped, lost, originals = Skipped(), Skipped(), Originals("")
    domains: dict[str, Counter[str]] = {}
    for part in parts:
        skipped.add(part["skipped"])
        lost.add(part["fidelity"]["skipped"])
        originals.merge(part["originals"])
        for domain, counts in part["fidelity"]["domains"].items():
            domains.setdefault(domain, Counter()).update(counts)
    speeds = [part["throughput"] for part in parts]
    tokens, seconds = sum(speed["tokens"] for speed in speeds), sum(speed["seconds"] for speed in speeds)
    return {
        "skipped": skipped.state(),
        "originals": originals.state(),
        "fidelity": {
            "skipped": lost.state(),
            "domains": {domain: dict(counts) for domain, counts in sorted(domains.items())},
        },
        "tokenizer_notes": parts[0]["tokenizer_notes"],
        "commits": {uri: commit for part in parts for uri, commit in part["commits"].items()},
        "throughput": {
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
            "processes": max(speed["processes"] for speed in speeds),
            "parts": len(parts),
        },
    }
