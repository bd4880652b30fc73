import pytest
import torch

from fedsdr.algorithms.client_corrections import (
    fedprox,
    local_correction,
    new_control,
    new_server_control,
    proximal_loss,
    scaffold,
)
from fedsdr.tensors import Tensors, subtract, zeros_like


def tree(**values) -> Tensors:
    return {name: torch.tensor(x) for name, x in values.items()}


def random_tree(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(2, 3, generator=generator), "b": torch.randn(4, generator=generator)}


def mean(trees) -> Tensors:
    return {name: torch.stack([t[name] for t in trees]).mean(0) for name in trees[0]}


def train(shared, gradient, adjust, steps, lr, make=torch.optim.SGD):
    """Return R after some steps and the uncorrected gradients that it saw."""
    weights = {n: x.clone().requires_grad_() for n, x in shared.items()}
    optimizer = make(list(weights.values()), lr=lr)
    seen = []
    for _ in range(steps):
        grads = gradient(weights)
        seen.append({n: g.clone() for n, g in grads.items()})
        for name, p in weights.items():
            p.grad = grads[name].clone()
            adjust(name, p.grad, p)
            assert not p.grad.requires_grad
        optimizer.step()
    return {n: p.detach() for n, p in weights.items()}, seen


def quadratic(curvature, target):
    """The gradient of curvature / 2 (w - target)^2."""
    return lambda weights: {n: curvature * (w.detach() - target) for n, w in weights.items()}


def test_fedprox_adds_mu_times_the_distance_in_place():
    # 0.5 (w - w_global) = 0.5 (3 - 1, -1 - 1) = (1, -1), added to (10, 20)
    grad = torch.tensor([10.0, 20.0])
    fedprox(tree(w=[1.0, 1.0]), mu=0.5)("w", grad, torch.tensor([3.0, -1.0]))
    assert grad.tolist() == [11.0, 19.0]


def test_the_proximal_loss_is_half_mu_times_the_squared_norm_over_all_shared_names():
    weights = tree(w=[3.0, -1.0], v=[[4.0]], private=[100.0])
    shared = tree(w=[1.0, 1.0], v=[[1.0]])
    # 0.5 / 2 * (2^2 + 2^2 + 3^2) = 4.25; unsquared norms would give 0.25 (sqrt 8 + 3) = 1.46
    assert proximal_loss(weights, shared, mu=0.5).item() == 4.25


def test_the_gradient_that_fedprox_adds_is_that_of_the_proximal_loss():
    shared, weights = random_tree(0), random_tree(1)
    for x in weights.values():
        x.requires_grad_()
    proximal_loss(weights, shared, mu=0.3).backward()
    adjust = fedprox(shared, mu=0.3)
    for name, x in weights.items():
        grad = torch.zeros_like(x)
        adjust(name, grad, x)
        torch.testing.assert_close(grad, x.grad)


def test_training_with_fedprox_ends_at_the_minimum_of_loss_and_proximal_term():
    # min of 3/2 (w - 5)^2 + 1/2 (w - 1)^2 is at (3 * 5 + 1 * 1) / (3 + 1) = 4
    shared = tree(w=[1.0])
    adjust = local_correction("fedprox", 1.0, shared, {}, {})
    local, _ = train(shared, quadratic(3.0, 5.0), adjust, steps=200, lr=0.1)
    assert local["w"].item() == pytest.approx(4.0, abs=1e-5)


def test_under_adamw_fedprox_is_the_same_as_the_term_in_the_loss():
    shared = random_tree(0)
    adjusted, _ = train(
        shared, quadratic(3.0, 5.0), fedprox(shared, 0.7), 20, 0.05, torch.optim.AdamW
    )
    weights = {n: x.clone().requires_grad_() for n, x in shared.items()}
    optimizer = torch.optim.AdamW(list(weights.values()), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        loss = sum(1.5 * (w - 5.0).square().sum() for w in weights.values())
        (loss + proximal_loss(weights, shared, 0.7)).backward()
        optimizer.step()
    for name in shared:
        torch.testing.assert_close(adjusted[name], weights[name].detach())


def test_scaffold_adds_the_servers_control_and_takes_the_clients_away():
    grad = torch.tensor([10.0, 20.0])
    scaffold(tree(w=[1.0, 2.0]), tree(w=[0.5, 4.0]))("w", grad, torch.tensor([7.0, 7.0]))
    assert grad.tolist() == [10.5, 18.0]


@pytest.mark.parametrize("name", ["none", "fedprox", "scaffold"])
def test_names_that_are_not_shared_are_left_alone(name):
    ones, twos = tree(R=[1.0]), tree(R=[2.0])
    grad = torch.tensor([10.0])
    local_correction(name, 0.5, ones, twos, ones)("S", grad, torch.tensor([3.0]))
    assert grad.tolist() == [10.0]


@pytest.mark.parametrize(("name", "expected"), [("none", 10.0), ("fedprox", 11.0), ("scaffold", 9)])
def test_a_correction_is_chosen_by_name_and_works_on_bf16_gradients(name, expected):
    shared, control, control_client = tree(w=[1.0]), tree(w=[2.0]), tree(w=[3.0])
    grad = torch.tensor([10.0], dtype=torch.bfloat16)
    adjust = local_correction(name, 0.5, shared, control, control_client)
    adjust("w", grad, torch.tensor([3.0], dtype=torch.bfloat16, requires_grad=True))
    assert grad.dtype == torch.bfloat16
    assert grad.tolist() == [expected]


def test_an_unknown_correction_is_refused():
    with pytest.raises(ValueError, match="fedprx"):
        local_correction("fedprx", 0.1, {}, {}, {})


def test_the_new_client_control_has_the_number_worked_by_hand():
    # c_k - c + (R_global - R) / (steps lr) = 3 - 1 + (10 - 7) / (5 * 0.5) = 3.2
    c_k = new_control(tree(w=[3.0]), tree(w=[1.0]), tree(w=[10.0]), tree(w=[7.0]), 5, 0.5)
    assert c_k["w"].item() == pytest.approx(3.2, rel=1e-7)
    assert c_k["w"].dtype == torch.float32


def test_under_sgd_the_new_client_control_is_the_mean_of_the_uncorrected_gradients():
    shared, control, control_client = random_tree(0), random_tree(1), random_tree(2)
    adjust = scaffold(control, control_client)
    local, seen = train(shared, quadratic(0.8, 2.0), adjust, steps=7, lr=0.1)
    c_k = new_control(control_client, control, shared, local, steps=7, lr=0.1)
    for name in shared:
        torch.testing.assert_close(c_k[name], mean(seen)[name], rtol=1e-5, atol=1e-5)


def test_under_adamw_the_new_client_control_does_not_know_the_size_of_the_gradient():
    shared, zeros = tree(w=[1.0]), tree(w=[0.0])
    for curvature in (1.0, 1e-3):
        local, _ = train(
            shared, quadratic(curvature, -9.0), scaffold(zeros, zeros), 5, 0.01,
            lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.0),
        )  # fmt: skip
        c_k = new_control(zeros, zeros, shared, local, 5, 0.01)
        assert c_k["w"].item() == pytest.approx(1.0, rel=0.01)  # the gradient is 10 or 0.01


def test_the_servers_control_stays_the_mean_of_all_clients_controls_when_a_part_takes_part():
    clients = {k: zeros_like(random_tree(0)) for k in range(5)}
    control = zeros_like(random_tree(0))
    for t, chosen in enumerate([(0, 1), (3,), (1, 2, 4), (0, 1, 2, 3, 4)]):
        after = {k: random_tree(10 * t + k) for k in chosen}
        change = mean([subtract(after[k], clients[k]) for k in chosen])
        control = new_server_control(control, change, num_updates=len(chosen), num_clients=5)
        clients |= after
        torch.testing.assert_close(control, mean(list(clients.values())), rtol=1e-5, atol=1e-6)


def test_the_new_server_control_has_the_number_worked_by_hand():
    # c + mean |S| / K = 1 + 6 * 2 / 8 = 2.5
    assert new_server_control(tree(w=[1.0]), tree(w=[6.0]), 2, 8)["w"].tolist() == [2.5]


def test_scaffold_reaches_the_optimum_of_clients_that_disagree_where_fedavg_does_not():
    # Two clients, 1/2 (w + 1)^2 and 4/2 (w - 2)^2; the optimum of their mean is
    # (1 * -1 + 4 * 2) / (1 + 4) = 1.4. Ten local steps drift: each client nearly arrives at its
    # own optimum, and FedAvg ends near their plain mean, 0.5.
    losses = [quadratic(1.0, -1.0), quadratic(4.0, 2.0)]
    ends = {}
    for name in ("none", "scaffold"):
        shared, control = tree(w=[0.0]), tree(w=[0.0])
        controls = [tree(w=[0.0]), tree(w=[0.0])]
        for _ in range(60):
            locals_, changes = [], []
            for k, gradient in enumerate(losses):
                adjust = local_correction(name, 0.0, shared, control, controls[k])
                local, _ = train(shared, gradient, adjust, steps=10, lr=0.1)
                c_k = new_control(controls[k], control, shared, local, 10, 0.1)
                locals_.append(local)
                changes.append(subtract(c_k, controls[k]))
                controls[k] = c_k
            shared = mean(locals_)
            control = new_server_control(control, mean(changes), 2, 2)
        ends[name] = shared["w"].item()
    assert ends["scaffold"] == pytest.approx(1.4, abs=1e-4)
    assert abs(ends["none"] - 1.4) > 0.3


@pytest.mark.parametrize("function", ["new_control", "new_server_control"])
def test_control_functions_change_none_of_their_inputs(function):
    trees = [random_tree(seed) for seed in range(4)]
    if function == "new_control":
        new_control(*trees, steps=3, lr=0.1)
    else:
        new_server_control(*trees[:2], 2, 5)
    for seed, x in enumerate(trees):
        torch.testing.assert_close(x, random_tree(seed), rtol=0, atol=0)
