import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny import branched, rows, tiny_llama

from fedsdr.config import LoraConfig
from fedsdr.models.adapters import load_adapter, peft_tensors, save_adapter
from fedsdr.models.packing import row_losses
from fedsdr.models.two_branch import BranchedModel
from fedsdr.training.optimizer_step import accumulate_gradients


def peft_twin(ours: BranchedModel, targets: object = ("q_proj", "v_proj")) -> PeftModel:
    """The same base and factors as a PEFT model with both adapters active."""
    config = peft.LoraConfig(
        r=ours.rank, lora_alpha=ours.alpha, target_modules=targets, lora_dropout=0.0
    )
    twin = get_peft_model(tiny_llama(packed=False), config, adapter_name="R")
    twin.add_adapter("S", config)
    state = twin.state_dict()
    for branch in ("R", "S"):
        for name, value in peft_tensors(ours.get(branch), branch).items():
            key = name.replace(".weight", f".{branch}.weight")
            assert key in state
            state[key].copy_(value)
    twin.base_model.set_adapter(["R", "S"])
    return twin.eval()


def twin_losses(twin: PeftModel, data: list) -> torch.Tensor:
    """Losses one row at a time, without packing or padding."""
    sums = []
    for row in data:
        logits = twin(torch.tensor([row.tokens])).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(row.tokens[1:]), reduction="none"
        )
        sums.append((losses * torch.tensor(row.supervised[1:])).sum())
    return torch.stack(sums)


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
@pytest.mark.parametrize("trained", ["R", "S"])
def test_packed_losses_and_gradients_equal_those_of_peft_with_two_active_adapters(targets, trained):
    ours = branched(tiny_llama(), targets=targets)
    twin = peft_twin(ours, targets)
    data = rows()
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(f".{trained}." in name)
    expected = twin_losses(twin, data)
    supervised = sum(sum(row.supervised[1:]) for row in data)
    (expected.sum() / supervised).backward()
    theirs = {n: p.grad for n, p in twin.named_parameters() if p.grad is not None}
    with ours.using("R", "S", trained=trained):
        torch.testing.assert_close(row_losses(ours.model, data), expected, rtol=1e-5, atol=1e-6)
        accumulate_gradients(ours.model, ours.parameters(trained).values(), data, pack_tokens=40)
        grads = {n: p.grad for n, p in ours.parameters(trained).items()}
        other = "S" if trained == "R" else "R"
        assert all(p.grad is None for p in ours.parameters(other).values())
        for name, grad in grads.items():
            key = next(iter(peft_tensors({name: grad}, trained)))
            want = theirs[key.replace(".weight", f".{trained}.weight")]
            assert float((grad - want).norm() / want.norm()) < 1e-5
    assert len(theirs) == len(grads) > 0


def test_a_branch_outside_the_forward_changes_nothing():
    ours = branched(tiny_llama())
    with ours.using("R"):
        before = row_losses(ours.model, rows())
    ours.set({name: torch.randn(p.shape) for name, p in ours.parameters("S").items()})
    with ours.using("R"):
        assert torch.equal(row_losses(ours.model, rows()), before)
    with ours.using("R", "S"):
        assert not torch.equal(row_losses(ours.model, rows()), before)


def test_dropout_acts_on_the_trained_branch_alone():
    ours = branched(tiny_llama())
    zero_r = {n: torch.zeros_like(p) for n, p in ours.parameters("R").items()}
    ours.set(zero_r)
    with ours.using("R", "S"):
        clean = row_losses(ours.model, rows())
    with ours.using("R", "S", trained="R", dropout=0.5):
        assert torch.equal(row_losses(ours.model, rows()), clean)
    with ours.using("R", "S", trained="S", dropout=0.5):
        assert not torch.equal(row_losses(ours.model, rows()), clean)


def test_a_fresh_branch_adds_nothing_and_does_not_depend_on_other_layers():
    ours = BranchedModel(tiny_llama(), rank=4, alpha=8, target_modules=["q_proj", "v_proj"])
    wider = BranchedModel(tiny_llama(), rank=4, alpha=8, target_modules="all-linear")
    fresh, wide = ours.initial("R", 7), wider.initial("R", 7)
    assert all(torch.equal(fresh[name], wide[name]) for name in fresh)
    ours.set(fresh)
    plain = row_losses(ours.model, rows())
    with ours.using("R"):
        assert torch.equal(row_losses(ours.model, rows()), plain)


def test_a_saved_branch_loads_in_plain_peft_with_the_same_losses(tmp_path):
    ours = branched(tiny_llama())
    save_adapter(
        tmp_path / "R", ours.get("R"), ["R"], lora=LoraConfig(alpha=ours.alpha), base_name="tiny"
    )
    loaded = PeftModel.from_pretrained(tiny_llama(packed=False), tmp_path / "R").eval()
    with ours.using("R"), torch.no_grad():
        got = row_losses(ours.model, rows())
        torch.testing.assert_close(got, twin_losses(loaded, rows()), rtol=1e-5, atol=1e-6)
    read = load_adapter(tmp_path / "R", "R")
    assert read.keys() == ours.get("R").keys()
    assert all(torch.equal(read[n], v) for n, v in ours.get("R").items())


def test_merging_gives_a_plain_model_with_the_same_losses():
    ours = branched(tiny_llama(), targets="all-linear")
    with ours.using("R", "S"), torch.no_grad():
        expected = row_losses(ours.model, rows())
    merged = ours.merge("R", "S")
    assert not any("lora" in name for name, _ in merged.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(row_losses(merged, rows()), expected, rtol=1e-4, atol=1e-4)


def test_training_a_branch_that_is_not_in_the_forward_is_an_error():
    with (
        pytest.raises(ValueError, match="not in the forward"),
        branched(tiny_llama()).using("R", trained="S"),
    ):
        pass
