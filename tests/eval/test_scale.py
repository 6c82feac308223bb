"""What an evaluation costs as domains, conditions and examples grow."""

import pytest
import torch

from monet import fingerprint
from monet.eval.ablate import ablate
from monet.eval.loading import load_model, weights_digest
from monet.masks import ExpertMask
from tests.eval.conftest import LABELS


@pytest.fixture
def hashings(monkeypatch):
    """A list that grows with every fingerprint taken of weights."""
    taken, digest = [], fingerprint._digest
    monkeypatch.setattr(fingerprint, "_digest", lambda *args: taken.append(1) or digest(*args))
    return taken


@pytest.mark.parametrize("seeds", [[0], [0, 1, 2, 3]])
def test_an_ablation_hashes_the_weights_once(random_model, random_data, tmp_path, hashings, seeds):
    name = random_model.fingerprint()
    masks = {label: ExpertMask.random(random_model.config, 5, seed=0, fingerprint=name) for label in LABELS}
    hashings.clear()
    ablate(random_model, masks, random_data, out=tmp_path, random_seeds=seeds, progress=False)
    assert len(hashings) == 1
    random_model.fingerprint()
    assert len(hashings) == 2  # held during the ablation only


def test_a_held_model_is_hashed_again_when_its_weights_change(random_model, hashings):
    with fingerprint.holding(random_model):
        before = random_model.fingerprint(), weights_digest(random_model)
        assert (random_model.fingerprint(), weights_digest(random_model)) == before and len(hashings) == 1
        with torch.no_grad():
            random_model.model.layers[0].self_attn.q_proj.weight.neg_()
        changed = random_model.fingerprint(), weights_digest(random_model)
        assert len(hashings) == 2 and changed[0] != before[0] and changed[1] != before[1]
        random_model.lm_head.weight = torch.nn.Parameter(random_model.lm_head.weight + 1)
        assert weights_digest(random_model) != changed[1]
        random_model.config.rms_norm_eps = 0.5
        assert len({before[1], changed[1], weights_digest(random_model)}) == 3
        with fingerprint.holding(random_model):
            pass
        random_model.fingerprint()
        assert len(hashings) == 2


def test_a_free_model_is_hashed_at_every_call(random_model, hashings):
    before = random_model.fingerprint()
    random_model.model.layers[0].self_attn.q_proj.weight.data.neg_()  # torch counts no change
    assert random_model.fingerprint() != before and len(hashings) == 2


def test_a_command_holds_the_model_that_it_loads(random_model, tmp_path, hashings):
    random_model.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "cpu")
    assert model.fingerprint() == model.fingerprint() == random_model.fingerprint()
    assert len(hashings) == 2
