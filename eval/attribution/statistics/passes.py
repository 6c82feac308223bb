"""One pass of a model over text: hooks give the routers' outputs to a reader, batch by batch.

`monet stats` and `monet index` both read text this way. docs/architecture.md explains the dims; X stands for the
counted tokens of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from monet.errors import NonFiniteError
from monet.eval.attribution.statistics.collectors import Tokens
from monet.eval.attribution.statistics.exclusion import Exclusion
from monet.eval.core.inputs import Batch
from monet.eval.core.loading import evaluating, vocab_size

if TYPE_CHECKING:
    from monet.model.modeling_monet import MonetPreTrainedModel


class RouterReader:
    """Base of a class that reads the routing probabilities of the counted tokens; subclasses define `read`.

    Args:
        device: device of the model.
        exclusion: tokens that do not count.

    Attributes:
        device: device of the sums; the CPU for a model on MPS, which has no float64.
        tokens: counted tokens of the current batch; None before the first.
        is_finite: bool scalar, false once a probability was NaN or infinite.
    """

    def __init__(self, device: torch.device, exclusion: Exclusion) -> None:
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.exclusion = exclusion
        self.tokens: Tokens | None = None
        self.is_finite = torch.ones((), dtype=torch.bool, device=self.device)

    def start(self, batch: Batch) -> Tensor:
        """Set the tokens of the next forward pass.

        Returns:
            int64 (B,), the number of counted tokens of each sequence.
        """
        self.tokens = Tokens.of(batch, self.device, self.exclusion)
        return self.tokens.per_sequence(batch)

    def add(self, group: int, output: Any) -> None:
        """Add the output of the group's router; the body of its forward hook."""
        assert self.tokens is not None, "call start before the batch's forward pass"
        chosen_BT = self.tokens.chosen_BT
        probs = [g_BTHE.detach().to(self.device).float() for g_BTHE in (output.g1_BTHE, output.g2_BTHE)]
        g1_XHE, g2_XHE = (g.flatten(0, 1) if chosen_BT is None else g[chosen_BT] for g in probs)
        self.is_finite &= torch.isfinite(g1_XHE.sum()) & torch.isfinite(g2_XHE.sum())
        with full_float32(self.device):
            self.read(group, g1_XHE, g2_XHE)

    def read(self, group: int, g1_XHE: Tensor, g2_XHE: Tensor) -> None:
        """Add float32 probabilities of one group; they may hold NaN, see `is_finite`."""
        raise NotImplementedError


def read_text(
    model: MonetPreTrainedModel,
    batches: Iterable[Batch],
    reader: RouterReader,
    done: Callable[[Batch, Tensor], object],
) -> None:
    """Run the model's body over batches, in eval mode, and give the routers' outputs to a reader.

    Args:
        model: a Monet model; its mode is restored.
        batches: sequences to read.
        reader: reads the routers' outputs.
        done: called after each batch, with the batch and the number of counted tokens of its sequences, int64 (B,).

    Raises:
        DataError: an id is beyond the model's vocabulary.
        NonFiniteError: a router gave NaN or infinite probabilities; the message names the first window of the batch.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for group, router in enumerate(model.routers()):
            handle = router.register_forward_hook(lambda _, __, output, group=group: reader.add(group, output))
            stack.callback(handle.remove)
        for batch in batches:
            batch.check_vocabulary(vocab_size(model))
            length_B = reader.start(batch)
            model.base_model(**batch.inputs(model.device))
            if not bool(reader.is_finite):
                raise NonFiniteError(
                    f"routing probabilities are not finite in the batch of windows {batch.index_B.tolist()} "
                    f"(document {batch.document_B[0]}); check the checkpoint's weights, or load it as float32"
                )
            done(batch, length_B)


@contextlib.contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32: no autocast and no TF32, regardless of the caller's settings."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
