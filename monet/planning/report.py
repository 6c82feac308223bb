"""Prints a plan as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from monet.costs.communication import OVERLAP, collectives, latency_seconds
from monet.costs.flops import forward_flops_per_token, parameter_counts, trained_parameters
from monet.costs.memory import STRATEGIES
from monet.planning.choices import GIB, Assumptions, Choice, Run, best, configured, node_bytes, remedies, words


def show(run: Run, given: Assumptions, choices: list[Choice], console: Console | None = None) -> None:
    """Print a plan.

    Args:
        run, given, choices: results of `monet.planning.plan`.
        console: console to print to; None uses standard output.
    """
    out = console or Console(width=120, highlight=False)
    out.print(f"[bold]{run.name}[/] on {given.gpus} {given.gpu.name}: an estimate, nothing was measured\n")
    out.print(_model(run))
    if run.freeze_dense:
        out.print(f"{trained_parameters(run.config, True):,} parameters learn; the dense weights are frozen")
    if (teacher := run.teacher) is not None:
        out.print(
            f"teacher: {teacher.parameters:,} parameters, {teacher.weight_bytes / GIB:.2f} GiB on every GPU,"
            f" {teacher.forward_flops / 1e6:,.1f} MFLOP per token"
        )
    tokens = run.steps * run.tokens
    out.print(
        f"step: {run.windows:,} windows of {run.seq_len:,} = {run.tokens:,} tokens; run: {run.steps:,} steps ="
        f" {tokens / 1e9:,.1f} billion tokens, {tokens * run.flops_per_token():.2e} FLOP\n"
    )
    out.print(
        f"GiB per GPU by micro-batch (windows on a GPU at a time), {run.precision}; (too much); state: the part for"
        " weights, gradients, optimiser",
        soft_wrap=True,
    )
    out.print(_memory(choices))
    out.print(_times(run, given, choices))
    now = configured(run, given)
    if given.gpus > 1 and (found := now or best(choices)) is not None:
        gathers, sums = collectives(run.config, found.strategy, found.accumulate)
        latency = latency_seconds(run.config, found.strategy, given.gpus, found.accumulate)
        out.print(
            f"{1e3 * latency:,.1f} ms of the waiting per step go to starting {gathers:,} gathers and {sums:,} sums over"
            f" {given.gpus:,} GPUs",
            soft_wrap=True,
        )
    if run.offload and now is not None:
        out.print(
            f"offloaded: {node_bytes(run, given, now) / GIB:,.0f} GiB of each node's memory; the time does not include"
            " the optimiser's update and the transfers"
        )
    if now is not None and now.fits and (options := words(run, given, now)):
        out.print(f"to run the configuration on these GPUs: {options}", soft_wrap=True)
    if lines := remedies(run, given, choices):
        out.print(f"{_obstacle(run, given, now)}; instead: {', or: '.join(lines)}", soft_wrap=True)
    if not run.precision.startswith("bf16"):
        out.print("float32 products are slower than the assumed rate: measure a short run and pass its --mfu")
    out.print(
        f"assumed: {given.mfu:.0%} of {given.gpu.peak_flops / 1e12:,.0f} TFLOP/s (bf16) while computing;"
        f" {given.bandwidth / 1e9:,.0f} GB/s per GPU in collectives, {OVERLAP:.0%} of the possible overlap;"
        f" {given.memory / GIB:.1f} of {given.gpu.memory_bytes / GIB:.0f} GiB usable. Formulas: docs/scaling.md",
        soft_wrap=True,
    )


def _obstacle(run: Run, given: Assumptions, now: Choice | None) -> str:
    if now is None:
        own = run.windows // given.gpus
        return f"as configured, a micro-batch of {run.micro_batch} windows does not divide the {own} windows of a GPU"
    return f"as configured, {now.total_bytes / GIB:.1f} GiB do not fit"


def _model(run: Run) -> Table:
    parameters, flops = parameter_counts(run.config), forward_flops_per_token(run.config, run.seq_len)
    table = Table(
        "parameters", "", "share", "forward, per token", "MFLOP", "share", title="Model", title_justify="left"
    )
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


def _memory(choices: list[Choice]) -> Table:
    sizes = sorted({choice.micro_batch for choice in choices})
    table = Table("strategy", "recompute", "state", *(str(size) for size in sizes))
    for column in table.columns[2:]:
        column.justify = "right"
    by_key = {(choice.strategy, choice.checkpointing, choice.micro_batch): choice for choice in choices}
    for strategy in [name for name in STRATEGIES if any(choice.strategy == name for choice in choices)]:
        for checkpointing in (False, True):
            row = [by_key[strategy, checkpointing, size] for size in sizes]
            state = sum(row[0].memory[part] for part in ("weights", "gradients", "optimiser"))
            cells = [f"{c.total_bytes / GIB:.1f}" if c.fits else f"({c.total_bytes / GIB:.1f})" for c in row]
            table.add_row(strategy, "on" if checkpointing else "off", f"{state / GIB:.1f}", *cells)
    return table


def _times(run: Run, given: Assumptions, choices: list[Choice]) -> Table:
    columns = ("", "strategy", "batch", "recompute", "GiB", "step, s", "waiting", "tokens/s", "days", "GPU hours")
    title = "Time; batch: windows on a GPU at a time x accumulation; waiting: for communication"
    table = Table(*columns, title=title, title_justify="left")
    for column in table.columns[4:]:
        column.justify = "right"
    now = configured(run, given)
    for name, found in (("configured", now), ("quickest", best(choices, now))):
        if found is None:
            table.add_row(name, "none")
            continue
        seconds = found.step_seconds
        days = run.steps * seconds / 86400
        waiting = f"{found.waiting_seconds / seconds:.0%}"
        size = f"{found.total_bytes / GIB:.1f}" if found.fits else f"({found.total_bytes / GIB:.1f})"
        table.add_row(
            name, found.name, f"{found.micro_batch} x {found.accumulate}",
            "on" if found.checkpointing else "off", size, f"{seconds:.2f}", waiting, f"{run.tokens / seconds:,.0f}",
            f"{days:,.2f}", f"{days * 24 * given.gpus:,.0f}",
        )  # fmt: skip
    return table
