import dataclasses

import pytest
import torch
from tiny import branched, rows, tiny_llama
from torch import nn

from fedsdr.config import Config, EngineConfig, LoraConfig, ModelConfig, TrainConfig
from fedsdr.errors import UserError
from fedsdr.models import memory
from fedsdr.models.checkpointing import checkpoint_layers
from fedsdr.models.live_bytes import LiveBytes
from fedsdr.models.memory import CannotEstimateError, choose_pack, estimate, full_pack, shape_of
from fedsdr.models.packed_attention import PackedRows, RowBlock
from fedsdr.models.two_branch import BranchedModel
from fedsdr.training.optimizer_step import accumulate_gradients


def gradients(model: BranchedModel, dropout: float):
    torch.manual_seed(3)
    with model.using("R", "S", trained="R", dropout=dropout):
        loss, _ = accumulate_gradients(
            model.model, model.parameters("R").values(), rows(), pack_tokens=40
        )
        return loss, {n: p.grad.clone() for n, p in model.parameters("R").items()}


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_checkpointing_changes_no_bit_of_loss_and_gradients_even_under_dropout(targets):
    plain, checkpointed = (branched(tiny_llama(), targets=targets) for _ in range(2))
    checkpoint_layers(checkpointed.model)
    loss, expected = gradients(plain, 0.3)
    again, found = gradients(checkpointed, 0.3)
    assert again == loss
    assert all(torch.equal(found[name], grad) for name, grad in expected.items())
    assert gradients(plain, 0.0)[0] != loss  # the dropout was on


def test_a_checkpointed_layer_keeps_its_input_alone():
    def kept(model: BranchedModel) -> int:
        sizes: dict[int, int] = {}

        def keep(t: torch.Tensor) -> torch.Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        held = []
        with (
            model.using("R", "S", trained="R"),
            torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or keep(t), keep),
        ):
            model.model(
                torch.arange(3, 35)[None],
                packed_rows=PackedRows((RowBlock((32,)),)),
                logits_to_keep=1,
            )
        own = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
        return sum(n for at, n in sizes.items() if at not in own)

    plain, checkpointed = (branched(tiny_llama(num_hidden_layers=6)) for _ in range(2))
    checkpoint_layers(checkpointed.model)
    assert kept(checkpointed) < kept(plain) / 4


def test_a_model_whose_layers_cannot_be_checkpointed_is_named():
    with pytest.raises(UserError, match=r"train\.checkpointing"):
        checkpoint_layers(nn.Linear(2, 2))


class FourBit(nn.Linear):
    """A linear layer as bitsandbytes makes it: two 4-bit codes a byte, restored at each forward."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.codes = torch.linspace(-0.5, 0.5, 16)
        nearest = (plain.weight[..., None] - self.codes).abs().argmin(-1).to(torch.uint8).flatten()
        self.weight = nn.Parameter((nearest[::2] * 16 + nearest[1::2])[:, None], False)

    def restored(self) -> torch.Tensor:
        packed = self.weight[:, 0].long()
        values = self.codes[torch.stack((packed // 16, packed % 16), dim=1)]
        return values.view(self.out_features, self.in_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.restored().to(x.dtype))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_four_bit_base_has_the_loss_and_gradients_of_its_restored_weights(checkpointing):
    quantised, plain = tiny_llama(), tiny_llama()
    for name, layer in list(plain.model.named_modules()):
        if isinstance(layer, nn.Linear):
            four_bit = FourBit(layer)
            parent, _, leaf = name.rpartition(".")
            setattr(quantised.model.get_submodule(parent), leaf, four_bit)
            layer.weight.data = four_bit.restored()
    ours, twin = (branched(model, targets="all-linear") for model in (quantised, plain))
    packed = ours.model.model.layers[0].self_attn.q_proj.weight
    assert packed.dtype == torch.uint8
    assert packed.numel() == 32 * 32 // 2
    if checkpointing:
        checkpoint_layers(ours.model)
    loss, found = gradients(ours, 0.2)
    expected_loss, expected = gradients(twin, 0.2)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5, atol=1e-7)


def meta(**changes: object) -> BranchedModel:
    with torch.device("meta"):
        model = tiny_llama(**changes)
    return BranchedModel(model, rank=4, alpha=8, target_modules=["q_proj", "v_proj"])


def test_weights_adapters_and_optimizer_are_those_counted_by_hand():
    found = estimate(meta(), full_pack(64, 32))
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32  # q, k + v, o, mlp, norms
    numbers = 2 * 384 * 32 + 2 * layer + 32  # embedding and head, layers, last norm
    buffers = 4 * 4 * 2  # the rotary frequencies, twice: 4 of a head of 8
    assert found.weights == 4 * numbers + buffers
    branch = 2 * 4 * ((32 + 32) + (32 + 16))  # layers x rank x (in + out of q, and of v)
    assert found.adapters == 2 * 4 * branch
    assert found.optimizer == 3 * 4 * branch
    assert found.total == found.weights + found.adapters + found.step


def test_four_bits_are_half_a_byte_and_their_scales_and_the_head_stays_whole():
    shape = meta()
    whole, eight, four = (
        estimate(shape, full_pack(64, 32), quantize=q) for q in ("none", "8bit", "4bit")
    )
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    assert whole.weights - eight.weights == 3 * linear
    assert (whole.weights - four.weights) / linear == pytest.approx(4 - 0.5159, abs=1e-3)
    assert four.logits - whole.logits == 4 * 32 * 64  # one layer's weights, restored


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_layers_that_were_not_run_add_what_they_would_have(checkpointing):
    shape = meta(num_hidden_layers=7)
    if checkpointing:
        checkpoint_layers(shape.model)
    data = full_pack(96, 40)
    found = estimate(shape, data, dropout=0.1)
    everything = memory._peak(shape, data, 7, 0.1)
    assert found.activations + found.logits == pytest.approx(everything, rel=0.01)
    assert len(shape.model.model.layers) == 7
    assert found.activations > 0
    assert found.logits > 0


def test_counting_live_bytes_gives_those_of_a_step_worked_by_hand():
    x, w = torch.ones(8, 4, requires_grad=True), torch.ones(4, 4)
    with LiveBytes() as live:
        y = (x @ w).relu()  # (8, 4) and, for backward, its result again: one storage each
        assert live.now == live.peak - 8 * 4 * 4 == 8 * 4 * 4  # the product is gone
        z = y.view(-1)[:3] * 2
        assert live.now == 8 * 4 * 4 + 3 * 4  # a view costs nothing
        del y, z
    assert live.now == 0


def test_a_full_pack_has_the_longest_rows_and_a_longer_one_its_own():
    assert [len(row.tokens) for row in full_pack(100, 40)] == [40, 40, 20]
    assert [len(row.tokens) for row in full_pack(100, 300)] == [300]


def test_a_model_that_needs_values_cannot_be_estimated():
    with pytest.raises(CannotEstimateError):
        estimate(meta(packed=False), full_pack(64, 32))


@pytest.fixture
def config(tmp_path):
    tiny_llama(packed=False).save_pretrained(tmp_path)
    return Config(model=ModelConfig(str(tmp_path), device="cpu", dtype="fp32"))


def test_the_pack_size_is_the_largest_that_fits_and_on_a_cpu_no_more_than_1024(config, monkeypatch):
    def with_free(size: int | None):
        monkeypatch.setattr(memory, "free_memory", lambda device: size)
        return choose_pack(config)[0]

    large, small = (estimate(shape_of(config), full_pack(n, 512), dropout=0.05).total
                    for n in (1024, 512))  # fmt: skip
    assert with_free(10**12) == 1024
    assert with_free(None) == 1024
    assert with_free(2 * large + 2) == 1024
    assert with_free(2 * large - 2) == 512
    with pytest.raises(UserError, match=r"checkpointing.*4bit.*max_length"):
        with_free(2 * small - 2)


def test_a_given_pack_size_stays_and_checkpointing_lowers_the_estimate(config, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    given = dataclasses.replace(config, train=TrainConfig(pack_tokens=700))
    pack_tokens, plain = choose_pack(given)
    assert pack_tokens == plain.pack_tokens == 700
    train = TrainConfig(pack_tokens=700, checkpointing=True)
    checkpointed = choose_pack(dataclasses.replace(config, train=train))[1]
    assert checkpointed.activations < plain.activations / 4
    wide = dataclasses.replace(given, lora=LoraConfig(target_modules="all-linear"))
    assert choose_pack(wide)[1].activations > plain.activations


def test_where_nothing_can_be_estimated_the_pack_size_is_the_usual_one(config, monkeypatch):
    def cannot(*args, **kwargs):
        raise CannotEstimateError("no")

    monkeypatch.setattr(memory, "estimate", cannot)
    assert choose_pack(config) == (1024, None)


def test_a_step_that_does_not_fit_for_several_clients_names_their_number(config, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    with pytest.raises(UserError) as alone:
        choose_pack(config)
    assert "clients_at_once" not in str(alone.value)
    at_once = dataclasses.replace(config, engine=EngineConfig(clients_at_once=0))
    with pytest.raises(UserError, match=r"engine\.clients_at_once = 1"):
        choose_pack(at_once)


def container(folder, limit: str, used: int, stat: str) -> str:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)
    return str(folder)


def test_cache_that_a_container_can_drop_is_free(tmp_path):
    stat = "anon 300000\nfile 690000\ninactive_file 600000\nactive_file 90000\n"
    cpu = torch.device("cpu")
    files = container(tmp_path, "1000000", 999000, f"{stat}slab_reclaimable 5000\n")
    assert memory.free_memory(cpu, files) == 1000 + 600000 + 5000
    assert memory.free_memory(cpu, container(tmp_path, "1000000", 999000, "")) == 1000
    assert memory.free_memory(cpu, container(tmp_path, "1000", 2000, "")) == 0
    unlimited = memory.free_memory(cpu, container(tmp_path, "max", 999000, stat))
    assert unlimited is None or unlimited > 10**6


def test_free_memory_is_less_than_the_machine_has():
    free = memory.free_memory(torch.device("cpu"))
    if free is not None:
        assert 0 < free < 2**50
