import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsdr.algorithms.low_rank import product_error
from fedsdr.tensors import Tensors, WeightedMean

MODULES = {
    "R/model.layers.0.self_attn.q_proj": (10, 12),
    "R/model.layers.0.self_attn.v_proj": (6, 12),
}


def client(seed: int, rank: int = 2, spread: float = 1.0) -> Tensors:
    """Random factors; with a small spread the clients are close to each other."""
    common, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    factors = {}
    for module, (size_in, size_out) in MODULES.items():
        for name, shape in (("lora_A", (rank, size_in)), ("lora_B", (size_out, rank))):
            middle = torch.randn(shape, generator=common)
            factors[f"{module}.{name}"] = middle + spread * torch.randn(shape, generator=own)
    return factors


def dense_product_error(factors, weights):
    """The definition, with out x in matrices in fp64: (total, by module)."""
    shares = [w / sum(weights) for w in weights]
    wrong, exact = {}, {}
    for module in MODULES:
        a = [f[f"{module}.lora_A"].double() for f in factors]
        b = [f[f"{module}.lora_B"].double() for f in factors]
        mean_a = sum(p * x for p, x in zip(shares, a, strict=True))
        mean_b = sum(p * x for p, x in zip(shares, b, strict=True))
        mean = sum(p * x @ y for p, x, y in zip(shares, b, a, strict=True))
        wrong[module] = torch.linalg.norm(mean_b @ mean_a - mean).item()
        exact[module] = torch.linalg.norm(mean).item()
    total = math.hypot(*wrong.values()) / math.hypot(*exact.values())
    return total, {m: wrong[m] / exact[m] for m in MODULES}


def factor_mean(pairs) -> Tensors:
    mean = WeightedMean()
    for update, num_examples in pairs:
        mean.add(update, num_examples)
    return mean.result()


def test_factors_are_averaged_separately_with_weights_n_k_over_n():
    # (3 * 4 + 1 * 8) / 4 = 5; the unweighted mean would be 6
    pairs = [({"A": torch.tensor([4.0])}, 3), ({"A": torch.tensor([8.0])}, 1)]
    assert factor_mean(pairs)["A"].tolist() == [5.0]


def test_bf16_updates_are_averaged_in_more_than_bf16():
    # In bf16, 256 + 1 is 256: a thousand additions of 1 would be lost.
    one = {"A": torch.tensor([1.0], dtype=torch.bfloat16)}
    large = {"A": torch.tensor([256.0], dtype=torch.bfloat16)}
    mean = factor_mean([(large, 1)] + [(one, 1)] * 1000)
    assert mean["A"].dtype == torch.float32
    assert mean["A"].item() == pytest.approx(1256 / 1001, rel=1e-7)


def test_the_product_error_is_about_the_factors_that_the_weighted_mean_gives():
    factors, weights = [client(1), client(2), client(3)], [1, 5, 2]
    mean = factor_mean(zip(factors, weights, strict=True))
    wrong, exact = 0.0, 0.0
    for m in MODULES:
        a, b = f"{m}.lora_A", f"{m}.lora_B"
        product = sum(w / 8 * f[b] @ f[a] for f, w in zip(factors, weights, strict=True))
        wrong += (mean[b] @ mean[a] - product).square().sum().item()
        exact += product.square().sum().item()
    assert product_error(factors, weights).total == pytest.approx((wrong / exact) ** 0.5, rel=1e-5)


def test_the_product_error_has_the_number_worked_by_hand():
    # A = 1 and 3, B = 1 and 3, equal weights: mean B mean A = 4, mean of BA = (1 + 9) / 2 = 5.
    factors = [
        {"m.lora_A": torch.tensor([[x]]), "m.lora_B": torch.tensor([[x]])} for x in (1.0, 3.0)
    ]
    error = product_error(factors, [7, 7])
    assert error.total == pytest.approx(1 / 5, rel=1e-12)
    assert error.modules == {"m": pytest.approx(1 / 5, rel=1e-12)}


@settings(max_examples=60)
@given(
    num_clients=st.integers(1, 9),
    rank=st.integers(1, 4),
    spread=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    data=st.data(),
)
def test_the_product_error_is_that_of_the_dense_matrices(num_clients, rank, spread, data):
    factors = [client(seed, rank, spread) for seed in range(1, num_clients + 1)]
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=num_clients, max_size=num_clients))
    total, modules = dense_product_error(factors, weights)
    error = product_error(factors, weights)
    assert error.total == pytest.approx(total, rel=1e-9, abs=1e-14)
    assert error.modules == {m: pytest.approx(e, rel=1e-9, abs=1e-14) for m, e in modules.items()}


@pytest.mark.parametrize("shared_factor", ["lora_A", "lora_B"])
def test_clients_that_share_one_factor_are_averaged_exactly(shared_factor):
    factors = [
        {n: client(0)[n] if n.endswith(shared_factor) else x for n, x in client(seed).items()}
        for seed in range(1, 5)
    ]
    assert product_error(factors, [1, 2, 3, 4]).total < 1e-14


def test_one_client_alone_has_no_product_error():
    assert product_error([client(1)], [5]).total == 0.0


def test_before_the_first_step_all_b_are_zero_and_so_is_the_error():
    factors = [
        {n: x * 0 if n.endswith("lora_B") else x for n, x in client(seed).items()}
        for seed in range(3)
    ]
    error = product_error(factors, [1, 1, 1])
    assert error.total == 0.0
    assert set(error.modules.values()) == {0.0}


def test_products_that_cancel_while_the_means_do_not_are_infinitely_wrong():
    # A = 2 and -1, B = 1 and 2: mean B mean A = 1.5 * 0.5 = 0.75 against (2 - 2) / 2 = 0.
    pairs = [(2.0, 1.0), (-1.0, 2.0)]
    factors = [{"m.lora_A": torch.tensor([[a]]), "m.lora_B": torch.tensor([[b]])} for a, b in pairs]
    assert product_error(factors, [1, 1]).total == math.inf


def test_a_factor_without_its_other_half_fails_loudly():
    with pytest.raises(KeyError, match="lora_B"):
        product_error([{"m.lora_A": torch.ones(1, 1)}], [1])
