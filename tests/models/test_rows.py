import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import branched, rows, tiny_llama
from transformers import MistralConfig, MistralForCausalLM

from fedsdr.models.attention import ATTENTION, register
from fedsdr.models.rows import pack, row_losses
from fedsdr.training.step import accumulate_gradients
from fedsdr.types import TokenRow


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 60))
def test_every_row_is_in_one_pack_and_no_pack_of_several_is_too_full(lengths, limit):
    data = [TokenRow(str(i), (3,) * n, (True,) * n) for i, n in enumerate(lengths)]
    groups = pack(data, limit)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(len(g) == 1 or sum(lengths[i] for i in g) <= limit for g in groups)


def test_packing_changes_neither_loss_nor_gradient():
    ours = branched(tiny_llama())
    found = []
    for pack_tokens in (1, 30, 10_000):
        with ours.using("R", "S", trained="R"):
            loss, count = accumulate_gradients(
                ours.model, ours.parameters("R").values(), rows(), pack_tokens
            )
            grads = [p.grad.clone() for p in ours.parameters("R").values()]
        found.append((torch.tensor(loss), count, grads))
    for loss, count, grads in found[1:]:
        torch.testing.assert_close(loss, found[0][0], rtol=1e-5, atol=0)
        assert count == found[0][1]
        for grad, first in zip(grads, found[0][2], strict=True):
            assert float((grad - first).norm() / first.norm()) < 1e-5


def test_a_row_does_not_see_its_neighbours_in_the_pack():
    model = tiny_llama()
    data = rows()
    alone = torch.cat([row_losses(model, [row]) for row in data])
    torch.testing.assert_close(row_losses(model, data), alone, rtol=1e-5, atol=1e-5)


def test_packed_rows_equal_padded_rows_under_the_models_own_attention():
    packed, padded = tiny_llama(), tiny_llama(packed=False)
    torch.testing.assert_close(
        row_losses(packed, rows()), row_losses(padded, rows()), rtol=1e-5, atol=1e-5
    )


def test_a_sliding_window_is_kept_inside_packed_rows():
    config = MistralConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=5,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    model = MistralForCausalLM(config).eval()
    data = rows(longest=40)
    expected = row_losses(model, data)
    register()
    model.set_attn_implementation(ATTENTION)
    torch.testing.assert_close(row_losses(model, data), expected, rtol=1e-5, atol=1e-5)
    model.config.sliding_window = None
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "sliding_window"):
            layer.self_attn.sliding_window = None
    assert not torch.allclose(row_losses(model, data), expected, rtol=1e-3)


def test_rows_without_a_supervised_token_have_no_loss():
    model = tiny_llama()
    silent = TokenRow("silent", (5, 6, 7), (True, False, False))
    losses = row_losses(model, [silent, rows(1)[0]])
    assert float(losses[0]) == 0.0
    assert float(losses[1]) > 0.0
