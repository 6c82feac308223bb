"""Ends a conversion: stage 2, the report, the model card, and the finished folder."""

from __future__ import annotations

from typing import Any

from monet import __version__
from monet.convert.dense import report as reports
from monet.convert.dense.conversion import Job, parts_of
from monet.convert.dense.distil import distil_folder, distilled_model, stage_2
from monet.convert.dense.hybrid import move_model
from monet.convert.dense.local import Seconds
from monet.convert.dense.measure import DomainLoss, held_out_windows, measure_losses
from monet.convert.dense.state import SETTINGS
from monet.errors import CheckpointError
from monet.files import atomic_write_text
from monet.json_text import parse_json, read_json
from monet.model.dense_models import load_dense
from monet.model.modeling_monet import MonetForCausalLM
from monet.terminal import clean


def finish(job: Job, results: dict[str, Any]) -> None:
    """Run stage 2 if it is wanted, write the report and the card, and move the model to its place.

    Args:
        job: the checked settings.
        results: of stage 1.
    """
    distils = job.distil.distil_tokens > 0
    if distils and not stage_2(job):
        return
    final = distilled_model(job) if distils else job.local_model
    if (job.out / reports.REPORT).is_file():  # a kill came while the model was moved
        move_model(final, job.out)
        return
    parts = parts_of(results) + ([_time_of_stage_2(job)] if distils else [])
    seconds = Seconds()
    with seconds.of("report"):
        local, sizes = _losses(job, job.local_model)
        last = _losses(job, final)[0] if distils else local
    measured = 2 * sum(domain.tokens for domain in last) * (1 + distils)
    parts.append(reports.Part("report", measured, seconds.wall["report"], seconds.cpu["report"]))
    report = _report(job, results, parts, local, last, sizes)
    atomic_write_text(final / "README.md", _card(job, report))
    report.save(job.out)
    move_model(final, job.out)
    print("\n".join(reports.summary(report)))
    print(f"model and report: {job.out}")


def _time_of_stage_2(job: Job) -> reports.Part:
    """Steps and seconds from the records of the run."""
    lines = (distil_folder(job) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [parse_json(line, "metrics.jsonl") for line in lines]
    tokens = len(entries) * job.text.seq_len * job.distil.distil_batch_size
    return reports.Part("stage 2", tokens, sum(entry["step_seconds"] for entry in entries))


def _losses(job: Job, folder: Any) -> tuple[list[DomainLoss], dict[str, int]]:
    """Losses of the model in a folder next to the dense model's, and its numbers of parameters."""
    converted = MonetForCausalLM.from_pretrained(folder)
    new = [layer.moe for layer in converted.model.layers if layer.moe is not None]
    sizes = {
        "all": converted.num_parameters(),
        "routers and experts": sum(
            weight.numel() for module in (*new, *converted.routers()) for weight in module.parameters()
        ),
    }
    windows = held_out_windows(job.data_module, job.run.report_windows)
    losses = measure_losses(load_dense(job.model), converted, windows, job.data_module.domains, job.arithmetic)
    return losses, sizes


def _report(
    job: Job,
    results: dict[str, Any],
    parts: list[reports.Part],
    local: list[DomainLoss],
    last: list[DomainLoss],
    sizes: dict[str, int],
) -> reports.Report:
    fvu = {int(layer): value for layer, value in results["fvu"].items()}
    domains = [
        reports.Domain(one.name, one.tokens, one.loss_dense, before.loss, one.loss, before.kl, one.kl)
        for before, one in zip(local, last, strict=True)
    ]
    return reports.Report(
        model=job.model,
        layers=job.layers,
        settings=read_json(job.out / SETTINGS, CheckpointError),
        tokens=results["tokens"],
        distil_tokens=job.distil.distil_tokens,
        fvu_start={int(layer): value for layer, value in results["fvu_start"].items()},
        fvu=fvu,
        curve=results["curve"],
        trends=reports.trends(results["curve"], fvu),
        groups=[reports.Group(layer=int(layer), **one) for layer, one in results["activity"].items()],
        domains=domains,
        parts=parts,
        parameters=sizes,
    )


def _card(job: Job, report: reports.Report) -> str:
    """README.md of the finished model."""
    c = job.config
    lines = "\n\n".join(reports.summary(report))
    kind = "All" if not c.dense_layers else f"{len(report.layers)} of {c.num_hidden_layers}"
    return _CARD.format(
        model=clean(job.model),
        kind=kind,
        experts=f"{c.moe_experts}² = {c.moe_experts**2:,} experts a layer, {c.moe_decompose} decomposition, hidden "
        f"width {c.moe_dim}, {c.moe_heads} heads, about {c.moe_topk} of {c.moe_experts} keys per side and head",
        summary=lines,
        fingerprint=job.data_module.fingerprint,
        version=__version__,
    )


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [monet, mixture-of-experts, interpretability]
---

# {model}, partly a Monet language model

{kind} layers of {model} are mixtures of monosemantic experts: {experts}. Every expert can be inspected, scored and
removed. The other layers are those of the dense model. The code of the paper's authors cannot load such a model.

```python
import monet  # registers the model type with the Auto classes
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

{summary}

`report.md` has the numbers of each layer and domain. Converted by `monet convert` {version} from the text with
fingerprint `{fingerprint}`. The dense model's licence applies.
"""
