"""Expert masks: which experts contribute, by how much, and in which forward passes."""

from monet.masks.expert_mask import MASK_FILE as MASK_FILE
from monet.masks.expert_mask import ExpertMask as ExpertMask
from monet.masks.expert_mask import keep_digest as keep_digest
from monet.masks.masked_model import find_body as find_body
