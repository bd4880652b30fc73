import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from fedsdr.algorithms.compression import decode, encode, encode_with_feedback, encoded_bytes
from fedsdr.tensors import add, norm, num_bytes, subtract, zeros_like

# Sizes at which a scale of 1/127 of the largest value is still a normal fp32 number.
VALUES = st.floats(-(2**60), 2**60, width=32).filter(lambda x: x == 0 or abs(x) > 2**-60)
MATRICES = hn.arrays("float32", st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=VALUES)


def test_int8_rows_worked_by_hand():
    a = torch.tensor([[127.0, -63.4, 0.6], [0.0, 0.0, 0.0]])  # (rank, in): a row is a row
    encoded = encode({"R/x.lora_A": a}, "int8")
    assert encoded["R/x.lora_A"].dtype == torch.int8
    assert encoded["R/x.lora_A"].tolist() == [[127, -63, 1], [0, 0, 0]]
    assert encoded["R/x.lora_A.scale"].tolist() == [[1.0], [0.0]]
    b = torch.tensor([[254.0, 0.5], [-3.0, 0.25], [2.0, -63.5]])  # (out, rank): a row is a column
    encoded = encode({"R/x.lora_B": b}, "int8")
    # 254 / 127 = 2: 127, -1.5 (ties to even: -2), 1; 63.5 / 127 = 0.5: 1, 0.5 (to even: 0), -127
    assert encoded["R/x.lora_B"].tolist() == [[127, 1], [-2, 0], [1, -127]]
    assert encoded["R/x.lora_B.scale"].tolist() == [[2.0, 0.5]]
    assert decode(encoded, {"R/x.lora_B": b}, "int8")["R/x.lora_B"].tolist() == [
        [254.0, 0.5],
        [-4.0, 0.0],
        [2.0, -63.5],
    ]


def test_bf16_rounds_to_the_nearest_even():
    x = {"a": torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20])}
    assert decode(encode(x, "bf16"), x, "bf16")["a"].tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7]


def test_fp32_crosses_as_it_is():
    x = {"a": torch.randn(3, 5)}
    encoded, residual = encode_with_feedback(x, {}, "fp32")
    assert torch.equal(decode(encoded, x, "fp32")["a"], x["a"])
    assert residual == {}


@given(MATRICES)
def test_int8_is_at_most_half_a_step_of_its_row_away(array):
    x = torch.from_numpy(array)
    encoded = encode({"x": x}, "int8")
    error = (x.double() - decode(encoded, {"x": x}, "int8")["x"].double()).abs()
    assert bool((error <= encoded["x.scale"].double() * 0.5 * (1 + 1e-5)).all())
    longest = max(x.shape)
    assert encoded["x.scale"].numel() == x.numel() // longest


@given(MATRICES)
def test_bf16_is_at_most_half_a_unit_of_its_last_place_away(array):
    x = torch.from_numpy(array)
    error = (x.double() - decode(encode({"x": x}, "bf16"), {"x": x}, "bf16")["x"].double()).abs()
    assert bool((error <= x.double().abs() * 2**-8).all())


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_what_is_encoded_again_does_not_change(dtype):
    x = {"a": torch.randn(8, 40), "b": torch.randn(40, 8)}
    once = decode(encode(x, dtype), x, dtype)
    again = decode(encode(once, dtype), x, dtype)
    assert all(torch.allclose(again[n], once[n], rtol=1e-6, atol=0) for n in x)


@pytest.mark.parametrize(("dtype", "share"), [("bf16", 0.5), ("int8", 0.26)])
def test_the_bytes_are_a_half_and_about_a_quarter(dtype, share):
    x = {"a": torch.randn(8, 576), "b": torch.randn(192, 8)}
    assert num_bytes(encode(x, dtype)) <= share * num_bytes(x)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_with_feedback_the_sum_of_what_was_counted_is_one_rounding_behind_the_true_sum(dtype):
    """Without feedback a change that is always below half a step would never be counted."""
    torch.manual_seed(0)
    steady = {"a": torch.randn(4, 16) * 1e-3 + torch.eye(4, 16)}
    residual, true, counted, naive = {}, zeros_like(steady), zeros_like(steady), zeros_like(steady)
    for _ in range(200):
        encoded, residual = encode_with_feedback(steady, residual, dtype)
        true, counted = add(true, steady), add(counted, decode(encoded, steady, dtype))
        naive = add(naive, decode(encode(steady, dtype), steady, dtype))
    assert norm(subtract(true, add(counted, residual))) < 1e-5 * norm(true)  # fp32 sums
    one_rounding = norm(subtract(steady, decode(encode(steady, dtype), steady, dtype)))
    assert norm(subtract(true, counted)) < 3 * one_rounding
    assert norm(subtract(true, naive)) > 50 * one_rounding


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stays_visible(bad):
    x = torch.ones(2, 4)
    x[1, 2] = bad
    for dtype in ("bf16", "int8"):
        encoded = encode({"a": x}, dtype)
        floats = [v for v in encoded.values() if v.is_floating_point()]
        assert not all(bool(torch.isfinite(v).all()) for v in floats)


GOOD = {"R/a.lora_A": torch.zeros(2), "R/a.lora_B": torch.ones(1, 2)}
INT8 = encode(GOOD, "int8")


@pytest.mark.parametrize(
    ("dtype", "sent", "reason"),
    [
        ("bf16", GOOD, "'R/a.lora_A' is float32, not bfloat16"),
        ("fp32", encode(GOOD, "bf16"), "is bfloat16, not float32"),
        ("int8", GOOD, "lacks 'R/a.lora_A.scale'"),
        ("int8", {**INT8, "R/a.lora_A": torch.zeros(2)}, "is float32, not int8"),
        ("int8", {**INT8, "R/a.lora_A.scale": torch.ones(2)}, r"has shape \(2,\), not \(1,\)"),
        ("int8", {**INT8, "R/a.lora_A.scale": torch.ones(1).half()}, "is float16, not float32"),
        ("int8", {**INT8, "S/a.lora_A.scale": torch.ones(1)}, "unexpected tensor 'S/a.lora_A.sc"),
    ],
)
def test_an_update_that_is_not_encoded_as_was_asked_is_refused_in_one_line(dtype, sent, reason):
    with pytest.raises(ValueError, match=reason):
        decode(sent, GOOD, dtype)


@pytest.mark.parametrize(("dtype", "size"), [("fp32", 16), ("bf16", 8), ("int8", 4 + 2 * 4)])
def test_the_bytes_of_an_update_are_known_without_encoding_it(dtype, size):
    # Four values; in int8 two rows with a scale each.
    assert encoded_bytes(GOOD, dtype) == num_bytes(encode(GOOD, dtype)) == size
