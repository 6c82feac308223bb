"""A plan as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from monet.flops import forward_flops_per_token, parameter_counts, training_flops_per_token
from monet.plan import GIB, NAMES, OVERLAP, Assumptions, Choice, Run, best, configured, host_bytes, remedies


def show(run: Run, given: Assumptions, choices: list[Choice], console: Console | None = None) -> None:
    """Print a plan.

    Args:
        run, given, choices: what `monet.plan` computed.
        console: where to; None takes standard output.
    """
    out = console or Console(width=120, highlight=False)
    out.print(f"[bold]{run.name}[/] on {given.gpus} {given.gpu.name}: an estimate, nothing was measured\n")
    out.print(_model(run))
    tokens = run.steps * run.tokens
    out.print(
        f"step: {run.windows:,} windows of {run.seq_len:,} = {run.tokens:,} tokens; run: {run.steps:,} steps ="
        f" {tokens / 1e9:,.1f} billion tokens, {tokens * training_flops_per_token(run.config, run.seq_len):.2e} FLOP\n"
    )
    out.print(_memory(run, given, choices))
    out.print(_times(run, given, choices))
    if run.offload:
        out.print(
            f"offloaded: {host_bytes(run, given) / GIB:,.0f} GiB of each node's memory; its update and the"
            " transfers are not in the time"
        )
    for line in remedies(run, given, choices):
        out.print(f"as configured it does not fit or cannot be dealt out; instead: {line}", soft_wrap=True)
    out.print(
        f"assumed: {given.mfu:.0%} of {given.gpu.peak_flops / 1e12:,.0f} TFLOP/s while computing;"
        f" {given.bandwidth / 1e9:,.0f} GB/s a GPU in collectives, {OVERLAP:.0%} of them hidden;"
        f" {given.memory / GIB:.1f} of {given.gpu.memory_bytes / GIB:.0f} GiB usable. Formulas: docs/scaling.md"
    )


def _model(run: Run) -> Table:
    parameters, flops = parameter_counts(run.config), forward_flops_per_token(run.config, run.seq_len)
    table = Table("parameters", "", "share", "forward, a token", "MFLOP", "share", title="Model", title_justify="left")
    for column in (1, 2, 4, 5):
        table.columns[column].justify = "right"
    left = _shares(parameters, lambda value: f"{value:,}")
    right = _shares(flops, lambda value: f"{value / 1e6:,.1f}")
    for row in range(max(len(left), len(right))):
        table.add_row(*(left[row] if row < len(left) else ("", "", "")), *(right[row] if row < len(right) else ()))
    return table


def _shares(parts: dict, text) -> list[tuple[str, str, str]]:
    total = sum(parts.values())
    rows = [(name.replace("_", " "), text(value), f"{value / total:.1%}") for name, value in parts.items()]
    return [*rows, ("all", text(total), "")]


def _memory(run: Run, given: Assumptions, choices: list[Choice]) -> Table:
    sizes = sorted({choice.micro_batch for choice in choices})
    title = f"GiB a GPU by micro-batch (windows), {run.precision}; state: weights, gradients, optimiser; (too much)"
    table = Table("strategy", "recompute", "of it state", *(str(size) for size in sizes), title=title)
    table.title_justify = "left"
    for column in table.columns[2:]:
        column.justify = "right"
    by_key = {(choice.stage, choice.checkpointing, choice.micro_batch): choice for choice in choices}
    for stage in sorted({choice.stage for choice in choices}):
        for checkpointing in (False, True):
            row = [by_key[stage, checkpointing, size] for size in sizes]
            state = sum(row[0].memory[part] for part in ("weights", "gradients", "optimiser"))
            cells = [f"{c.total_bytes / GIB:.1f}" if c.fits else f"({c.total_bytes / GIB:.1f})" for c in row]
            table.add_row(NAMES[stage], "on" if checkpointing else "off", f"{state / GIB:.1f}", *cells)
    return table


def _times(run: Run, given: Assumptions, choices: list[Choice]) -> Table:
    columns = ("", "strategy", "batch", "recompute", "GiB", "step, s", "waiting", "tokens/s", "days", "GPU hours")
    title = "Time; batch: windows of a GPU at a time x accumulation; waiting: for communication"
    table = Table(*columns, title=title, title_justify="left")
    for column in table.columns[4:]:
        column.justify = "right"
    for name, found in (("configured", configured(run, given)), ("quickest", best(choices))):
        if found is None:
            table.add_row(name, "none")
            continue
        seconds = found.step_seconds
        days = run.steps * seconds / 86400
        waiting = f"{1 - found.compute_seconds / seconds:.0%}"
        size = f"{found.total_bytes / GIB:.1f}" if found.fits else f"({found.total_bytes / GIB:.1f})"
        table.add_row(
            name, NAMES[found.stage], f"{found.micro_batch} x {found.accumulate}",
            "on" if found.checkpointing else "off", size, f"{seconds:.2f}", waiting, f"{run.tokens / seconds:,.0f}",
            f"{days:,.1f}", f"{days * 24 * given.gpus:,.0f}",
        )  # fmt: skip
    return table
