import pytest
import torch

from fedsdr.config import ModelConfig
from fedsdr.models import dtype_choice
from fedsdr.models.base_model import dtype_of, load_base
from fedsdr.models.dtype_choice import cpu_times


@pytest.fixture(autouse=True)
def cpu_with_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    cpu_times.cache_clear()
    yield
    cpu_times.cache_clear()


def measuring(monkeypatch, **seconds):
    """Replace the measurement; return the sizes that were asked for."""
    asked = []
    monkeypatch.setattr(dtype_choice, "_seconds", lambda *sizes: asked.append(sizes) or seconds)
    return asked


@pytest.mark.parametrize(("fp32", "bf16", "faster"), [(1.0, 2.0, "fp32"), (2.0, 1.0, "bf16")])
def test_the_faster_dtype_is_taken_and_kept_for_the_next_process(
    tmp_path, fp32, bf16, faster, monkeypatch
):
    asked = measuring(monkeypatch, fp32=fp32, bf16=bf16)
    for _ in range(2):
        assert cpu_times(32, 64, tmp_path).faster == faster
        cpu_times.cache_clear()
    assert asked == [(32, 64)]


def test_the_choice_says_what_was_measured(tmp_path, monkeypatch):
    measuring(monkeypatch, fp32=1.0, bf16=2.5)
    assert str(cpu_times(32, 64, tmp_path)) == (
        "model.dtype: fp32, whose 32 x 64 matrix products are 2.5 times as fast here as those of "
        "bf16"
    )


def test_a_damaged_measurement_is_made_again(tmp_path):
    cpu_times(32, 64, tmp_path)
    (path,) = (tmp_path / "dtypes").glob("*.json")
    path.write_text("{")
    cpu_times.cache_clear()
    assert min(cpu_times(32, 64, tmp_path).seconds.values()) > 0


def test_a_cpu_without_bf16_has_no_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert cpu_times(32, 64, tmp_path) is None


def test_auto_is_measured_at_the_sizes_of_the_model_and_noted(tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path))
    measuring(monkeypatch, fp32=3.0, bf16=1.0)
    config = ModelConfig(name=str(model_folder))
    assert dtype_of(config) == "bf16"
    base = load_base(config)
    assert base.model.dtype == torch.bfloat16
    assert any("bf16, whose 32 x 64 matrix products are 3.0 times" in note for note in base.notes)
