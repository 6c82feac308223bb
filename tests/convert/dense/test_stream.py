"""The stream gives what the dense model's MLPs read and write, in the data's order."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch
from transformers import LlamaForCausalLM

from monet.convert.dense.precision import Arithmetic
from monet.convert.dense.stream import MlpStates, StateStream, TextOptions, check_text
from monet.errors import ConfigError
from monet.model.dense_models import load_dense

CPU = Arithmetic(torch.device("cpu"), False)
TEXT = TextOptions(seq_len=32, batch_size=2)


def stream_of(dense, data_dir, layers, text=TEXT) -> StateStream:
    return StateStream(MlpStates(load_dense(str(dense)), layers, CPU), text.module(data_dir))


def first_batches(stream: StateStream, count: int) -> list:
    with closing(stream.batches()) as batches:
        return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("masked", [False, True])
def test_states_are_those_of_the_whole_model(dense, data_dir, masked):
    text = TextOptions(seq_len=128, batch_size=4, document_mask=True) if masked else TEXT
    stream = stream_of(dense, data_dir, [1, 2], text)
    (batch,) = first_batches(stream, 1)
    windows = next(iter(text.module(data_dir).train_dataloader()))
    seen: dict[str, torch.Tensor] = {}
    model = LlamaForCausalLM.from_pretrained(dense).eval()
    for layer in (1, 2):
        model.model.layers[layer].mlp.register_forward_hook(
            lambda _, inputs, output, layer=layer: seen.update({f"x{layer}": inputs[0], f"y{layer}": output})
        )
    with torch.no_grad():
        # with a cache, transformers does not separate documents
        ids, positions = windows["input_ids"][:, :-1], windows.get("position_ids")
        model(input_ids=ids, position_ids=positions, use_cache=False)
    for layer in (1, 2):
        assert torch.equal(batch.states[layer].x_TD, seen[f"x{layer}"].flatten(0, 1))
        assert torch.equal(batch.states[layer].y_TD, seen[f"y{layer}"].flatten(0, 1))
    starts = windows["position_ids"].flatten() == 0 if masked else torch.arange(64) % 32 == 0
    assert torch.equal(batch.first_T, starts | (ids.flatten() == model.config.bos_token_id))
    assert not masked or starts.sum() > 4  # documents begin inside the windows
    assert torch.equal(batch.domain_T, windows["domain"].repeat_interleave(text.seq_len))


def test_beginning_of_text_tokens_count_as_first_tokens(dense, data_dir):
    model = load_dense(str(dense))
    model.config.bos_token_id = 7
    ids_BT = torch.tensor([[5, 7, 6, 6], [7, 6, 7, 6]])
    batch = MlpStates(model, [0], CPU)({"input_ids": ids_BT, "domain": torch.tensor([0, 1])})
    assert batch.first_T.tolist() == [True, True, False, True, False, True]


def test_layers_above_the_topmost_chosen_one_never_run(dense, data_dir):
    assert len(stream_of(dense, data_dir, [0, 1]).model.body.layers) == 2


def test_no_window_repeats_before_all_were_read(dense, data_dir):
    stream = stream_of(dense, data_dir, [0])
    per_batch = stream.stream.batch_size
    count = len(stream.stream.windows) // per_batch
    order = [window for number in range(count) for window in stream.stream.batch_windows(number)]
    assert len(set(order)) == len(order) == count * per_batch
    assert stream.num_tokens == len(stream.stream.windows) * 32 and stream.tokens_per_batch == 64


def test_a_stream_continues_at_its_place(dense, data_dir):
    stream = stream_of(dense, data_dir, [0])
    first_batches(stream, 3)
    state = stream.state_dict()
    (expected,) = first_batches(stream, 1)
    other = stream_of(dense, data_dir, [0])
    other.load_state_dict(state)
    (found,) = first_batches(other, 1)
    assert torch.equal(found.states[0].x_TD, expected.states[0].x_TD)


def test_only_the_wanted_layers_are_kept(dense, data_dir):
    stream = stream_of(dense, data_dir, [0, 1, 2])
    with closing(stream.batches([1])) as batches:
        assert next(batches).states.keys() == {1}


def test_text_that_the_model_cannot_read_is_refused(data_dir):
    text = TEXT.module(data_dir)
    with pytest.raises(ConfigError, match="280 ids, but the model has 100"):
        check_text(text, 100, 128)
    with pytest.raises(ConfigError, match="seq_len 32 exceeds"):
        check_text(text, 300, 16)
