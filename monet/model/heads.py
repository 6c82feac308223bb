"""Task heads on MonetModel: sequence classification, token classification, question answering.

transformers' generic heads do the work. Their parameters are `score` (classification) and `qa_outputs` (question
answering). `from_pretrained` can start a head from any Monet checkpoint: the head's parameters are then new, and
transformers warns about them; all other tensors are checked as usual.
"""

from __future__ import annotations

from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from monet.model.modeling_base import MonetPreTrainedModel


class MonetForSequenceClassification(GenericForSequenceClassification, MonetPreTrainedModel):
    """MonetModel and a linear head on each sequence's last token; a reward model if `num_labels=1`.

    `forward` takes the arguments of `MonetModel.forward`, including `expert_mask`, and `labels`: (B,) int64 classes, or
    (B,) float targets for `num_labels=1`, or (B, num_labels) float for several labels per sequence. The output's
    `logits` are (B, num_labels). The last token is the last one that is not `config.pad_token_id`.

    Raises:
        ValueError: there are several sequences, but the configuration has no pad_token_id.
    """


class MonetForTokenClassification(GenericForTokenClassification, MonetPreTrainedModel):
    """MonetModel and a linear head on every token.

    `forward` takes the arguments of `MonetModel.forward`, including `expert_mask`, and `labels`: (B, T) int64; -100 is
    ignored. The output's `logits` are (B, T, num_labels).
    """


class MonetForQuestionAnswering(GenericForQuestionAnswering, MonetPreTrainedModel):
    """MonetModel and a linear head that scores each token as the start and as the end of the answer.

    `forward` takes the arguments of `MonetModel.forward`, including `expert_mask`, and `start_positions` and
    `end_positions`: (B,) int64. The output's `start_logits` and `end_logits` are (B, T).
    """
