"""Options that the commands of several suites share, in groups. The fields are options without a prefix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from monet.eval.core.bootstrap import Bootstrap, Unit
from monet.eval.core.inputs import PreparedWindows
from monet.eval.core.loading import DocumentMask, DType, load_model, open_windows
from monet.model.fingerprint import hold
from monet.model.modeling_monet import MonetForCausalLM
from monet.options import Options
from monet.parts import Part


@dataclass(frozen=True)
class Compute(Options):
    """Where and how the model computes.

    Args:
        device: cpu, cuda, cuda:1, ...; auto takes a GPU if there is one.
        dtype: precision of the weights; auto keeps the precision of the files.
        batch_size: sequences in each forward pass; it changes results only by float32 rounding.
        progress: show progress bars on standard error.
    """

    device: str = "auto"
    dtype: DType = "auto"
    batch_size: int = 8
    progress: bool = True

    def load(self, model: str) -> MonetForCausalLM:
        """Load the model from a folder or hub name. Its weights are hashed once and must not change.

        Raises:
            CheckpointError: the model does not exist.
        """
        loaded = load_model(model, self.device, self.dtype)
        hold(loaded)
        return loaded


@dataclass(frozen=True)
class DividedCompute(Compute):
    """Where and how the model computes, and which part of the work this process does.

    Args:
        part: i/n computes part i of n parts of the masks and controls, where i starts at 0, and writes no result. Start
            n processes, one for each part, and then run the same command without this option.
    """

    part: str | None = None

    @property
    def own_part(self) -> Part | None:
        """The part; None takes everything.

        Raises:
            ConfigError: `part` does not have the form i/n.
        """
        return Part.parse(self.part)


@dataclass(frozen=True)
class WindowOptions(Options):
    """Which windows of the prepared text are read.

    Args:
        seq_len: tokens of a window; if omitted, the most that the model was made for.
        max_windows: windows of each domain, evenly spread over its text; if omitted, all windows.
        domains: domains of DATA to read; if omitted, all domains.
        document_mask: true separates the documents of a window: no attention between documents, and positions from
            each document's start. auto does the same as the model's training.
    """

    seq_len: int | None = None
    max_windows: int | None = None
    domains: list[str] | None = None
    document_mask: DocumentMask = "auto"

    def open(self, folder: Path, split: str, model: MonetForCausalLM) -> PreparedWindows:
        """Windows of one split of a folder of `monet data prepare`.

        Raises:
            DataError: the split or domain does not exist, or the data have another tokenizer.
        """
        return open_windows(folder, split, model, self.seq_len, self.max_windows, self.domains, self.document_mask)


@dataclass(frozen=True)
class Intervals(Options):
    """Confidence intervals.

    Args:
        resamples: bootstrap draws for each interval, at least 1000.
        confidence: share of the draws inside an interval.
        seed: seed of the bootstrap, and of sampling where the model generates text.
    """

    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def bootstrap(self) -> Bootstrap:
        """The bootstrap that makes the intervals.

        Raises:
            ConfigError: a value is out of range.
        """
        return Bootstrap(resamples=self.resamples, confidence=self.confidence, seed=self.seed)


@dataclass(frozen=True)
class TextIntervals(Intervals):
    """Confidence intervals over text.

    Args:
        unit: what is resampled: source (windows that begin in documents of one source stay together), document
            (windows that begin in one document stay together) or window. If omitted: source, if DATA hold the source of
            every document and each domain has two or more; otherwise document.
    """

    unit: Unit | None = None

    def bootstrap(self) -> Bootstrap:
        """The bootstrap that makes the intervals; same errors as in the base class."""
        return replace(super().bootstrap(), unit=self.unit)
