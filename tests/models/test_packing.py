import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import branched, rows, tiny_llama

from fedsdr.models.live_bytes import LiveBytes
from fedsdr.models.packed_attention import PackedRows, RowBlock
from fedsdr.models.packing import pack, row_losses, shared_prefix
from fedsdr.training.optimizer_step import accumulate_gradients
from fedsdr.types import TokenRow


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(0, 5), st.integers(1, 60))
def test_every_row_is_in_one_pack_and_no_pack_of_several_is_too_full(lengths, common, limit):
    prefix = (3,) * common
    data = [TokenRow(str(i), (*prefix, 9 + i, *(4,) * n), ()) for i, n in enumerate(lengths)]
    groups = pack(data, limit)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    for group in groups:
        in_forward = common + sum(1 + lengths[i] for i in group)
        assert len(group) == 1 or in_forward <= limit


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=2, max_size=6))
def test_the_shared_prefix_is_the_longest_that_leaves_every_row_a_token(tokens):
    found = shared_prefix(tokens)
    shares = [n for n in range(min(map(len, tokens))) if len({tuple(t[:n]) for t in tokens}) == 1]
    assert found == max(shares)


@pytest.mark.parametrize("prefix", [1, 5, 9])
@pytest.mark.parametrize("window", [None, 6])
def test_rows_that_begin_alike_have_the_losses_and_gradients_of_each_alone(prefix, window):
    tiny = branched(tiny_llama(), targets="all-linear")
    for layer in tiny.model.model.layers:
        layer.self_attn.sliding_window = window
    alike = [
        TokenRow(r.id, (*range(20, 20 + prefix), *r.tokens), (*(True,) * prefix, *r.supervised))
        for r in rows()
    ]
    assert shared_prefix([row.tokens for row in alike]) == prefix

    def losses_and_gradients(groups):
        with tiny.using("R", "S", trained="R"):
            losses = torch.cat([row_losses(tiny.model, group) for group in groups])
            losses.sum().backward()
            return losses.detach(), [p.grad.clone() for p in tiny.parameters("R").values()]

    together, grads = losses_and_gradients([alike])
    alone, expected = losses_and_gradients([[row] for row in alike])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    for grad, want in zip(grads, expected, strict=True):
        assert float((grad - want).norm() / want.norm()) < 1e-5


def by_autograd(ours, layer, x):
    """Eq. 6 of the paper, written as it stands."""
    out = layer.base(x)
    for branch in ("R", "S"):
        a, b = (ours.factors[f"{branch}/{layer.name}.lora_{kind}"].to(x.dtype) for kind in "AB")
        out = out + ours.scales[layer.name] * (x @ a.t()) @ b.t()
    return out


def loss_and_gradient(dtype, fast):
    """Of branch S in one step, on the fast path or with the model's own attention and norms."""
    ours = branched(tiny_llama(packed=fast).bfloat16().to(dtype), targets="all-linear")
    if not fast:
        for layer in ours.layers.values():
            layer.forward = functools.partial(by_autograd, ours, layer)
    factors = ours.parameters("S").values()
    with ours.using("R", "S", trained="S"):
        loss, _ = accumulate_gradients(ours.model, factors, rows(), pack_tokens=50)
        return loss, torch.cat([p.grad.flatten() for p in factors])


def distance(a, b):
    return float((a - b).norm() / b.norm())


def test_a_training_step_equals_that_of_the_models_own_attention_norms_and_logits():
    (loss, gradient), (want_loss, want) = (loss_and_gradient(torch.float32, f) for f in (1, 0))
    assert abs(loss - want_loss) < 1e-5 * want_loss
    assert distance(gradient, want) < 1e-5


def test_a_training_step_in_bf16_is_as_near_to_fp32_as_the_models_own_is():
    exact_loss, exact = loss_and_gradient(torch.float32, fast=True)
    loss, gradient = loss_and_gradient(torch.bfloat16, fast=True)
    _, own = loss_and_gradient(torch.bfloat16, fast=False)
    assert gradient.dtype == torch.float32
    assert abs(loss - exact_loss) < 2e-2 * exact_loss
    assert distance(gradient, exact) < 1.2 * distance(own, exact)


@pytest.mark.parametrize("window", [None, 3])
def test_all_masks_of_a_pack_take_the_bytes_of_the_longest_one_and_are_freed_with_it(window):
    with LiveBytes() as live:
        packed = PackedRows((RowBlock((7, 12, 30, 30, 5), prefix=4),))
        for _, n, shared in packed.segments():
            prefix = shared.stop - shared.start
            hidden = packed.hidden(n, prefix, window, torch.device("cpu"))
            for i in range(n):
                seen = [j for j in range(prefix + n) if not hidden[i, j]]
                first = 0 if window is None else max(0, prefix + i - window + 1)
                assert seen == list(range(first, prefix + i + 1))
        assert live.now == (4 + 30) ** 2
        del packed, hidden
    assert live.now == 0


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


def test_rows_without_a_supervised_token_have_no_loss():
    model = tiny_llama()
    silent = TokenRow("silent", (5, 6, 7), (True, False, False))
    losses = row_losses(model, [silent, rows(1)[0]])
    assert float(losses[0]) == 0.0
    assert float(losses[1]) > 0.0
