"""Terminal output of a preparation: progress bars and a table of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from monet.terminal import clean, markup


class Progress:
    """Progress bars on standard error; without a terminal only their final state is printed."""

    def __init__(self) -> None:
        self._progress = RichProgress(
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"), TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip

    def __enter__(self) -> Progress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, description: str, total: int | None, unit: str) -> Task:
        """Add a bar; `total` None means that the end is unknown."""
        return Task(self._progress, self._progress.add_task(clean(description), total=total, unit=unit))


class Task:
    """One bar."""

    def __init__(self, progress: RichProgress, task_id: Any) -> None:
        self._progress = progress
        self._id = task_id

    def advance(self, amount: int) -> None:
        self._progress.advance(self._id, amount)

    def describe(self, description: str) -> None:
        self._progress.update(self._id, description=clean(description))


def print_table(manifest: dict[str, Any]) -> None:
    """Print documents, tokens and UTF-8 bytes per token of each domain and split, and the speed.

    If the tokenizer loses text, also print its unknown ids, and the letters of a sample that decoding does not restore.
    """
    splits = manifest["splits"]
    lost = {domain: counts for domain, counts in manifest.get("fidelity", {}).items() if _is_lossy(counts)}
    table = Table(box=box.SIMPLE, caption="documents / tokens / bytes per token")
    table.add_column("domain")
    for split in splits:
        table.add_column(markup(split), justify="right")
    if lost:
        table.add_column("unknown ids", justify="right")
        table.add_column("letters lost (sample)", justify="right")
    for domain in manifest["domains"]:
        cells = (_cell(splits[split][domain]) for split in splits)
        table.add_row(markup(domain), *cells, *_losses(lost.get(domain)))
    totals = [
        {key: sum(part[key] for part in domains.values()) for key in ("documents", "tokens", "text_bytes")}
        for domains in splits.values()
    ]
    table.add_section()
    table.add_row("all", *(_cell(total) for total in totals))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    tokens, made = sum(total["tokens"] for total in totals), manifest["throughput"]
    console.print(
        f"{tokens:,} tokens of a vocabulary of {manifest['vocab_size']:,} as {manifest['dtype']}, "
        f"{made['tokens_per_second']:,.0f} tokens/s with {made['processes']} process(es)"
    )


def _is_lossy(counts: dict[str, int]) -> bool:
    return counts["unknown_ids"] > 0 or counts["lost_letters"] > 0


def _losses(counts: dict[str, int] | None) -> list[str]:
    if counts is None:
        return []
    return [
        f"{counts['unknown_ids']:,} of {counts['tokens']:,}",
        f"{counts['lost_letters']:,} of {counts['sampled_letters']:,}",
    ]


def _cell(part: dict[str, int]) -> str:
    return f"{part['documents']:,} / {part['tokens']:,} / {part['text_bytes'] / max(part['tokens'], 1):.2f}"


def print_notes(notes: list[str], skipped: dict[str, Any]) -> None:
    """Print what was left out: the count of each kind, and the first items by name."""
    for note in notes:
        print(clean(note))
    for kind, count in skipped["counts"].items():
        print(clean(f"left out, {kind}: {count}"))
    for message in skipped["examples"]:
        print(f"  {clean(message)}")


def print_made(folder: Path, manifest: dict[str, Any], notes: list[str], worked: bool) -> None:
    """Print a preparation's result: skipped items, the table, notes, and the folder."""
    if not worked:
        print(f"{folder}: already prepared with these settings, nothing to do")
        return
    print_notes(notes, manifest["skipped"])
    print_table(manifest)
    for note in manifest.get("notes", []):
        print(f"note: {note}")
    print(f"prepared data: {folder} (fingerprint {manifest['fingerprint'][:12]})")
