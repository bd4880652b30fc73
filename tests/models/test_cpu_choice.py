import os

import pytest
import torch

from fedsdr.config import ModelConfig
from fedsdr.models import base_model, cpu_choice
from fedsdr.models.base_model import dtype_of, load_base, threads_of
from fedsdr.models.cpu_choice import CpuTimes, cores_are_free, cpu_times, thread_limit


@pytest.fixture(autouse=True)
def cpu_with_bf16_and_eight_cores(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for module in (cpu_choice, base_model):
        monkeypatch.setattr(module, "thread_limit", lambda: 8)
    monkeypatch.setattr(cpu_choice, "cores_are_free", lambda threads: True)
    cpu_times.cache_clear()
    yield
    cpu_times.cache_clear()


def measuring(monkeypatch, **seconds):
    """Replace the measurement; return the sizes that were asked for."""
    asked = []

    def measured(*sizes):
        asked.append(sizes)
        return {name: [of] * 4 if isinstance(of, float) else of for name, of in seconds.items()}

    monkeypatch.setattr(cpu_choice, "_seconds", measured)
    return asked


@pytest.mark.parametrize(("fp32", "bf16", "faster"), [(1.0, 2.0, "fp32"), (2.0, 1.0, "bf16")])
def test_the_faster_dtype_is_taken_and_kept_for_the_next_process(
    tmp_path, fp32, bf16, faster, monkeypatch
):
    asked = measuring(monkeypatch, fp32=fp32, bf16=bf16)
    for _ in range(2):
        assert cpu_times(32, 64, tmp_path).faster == faster
        cpu_times.cache_clear()
    assert asked == [(32, 64, [1, 2, 4, 8], ["fp32", "bf16"])]


def test_the_choice_says_what_was_measured(tmp_path, monkeypatch):
    measuring(monkeypatch, fp32=[4.0, 2.0, 1.0, 3.0], bf16=2.5)
    assert cpu_times(32, 64, tmp_path).dtype_notes() == (
        "model.dtype: fp32, whose 32 x 64 matrix products are 2.5 times as fast here as those of "
        "bf16",
    )


@pytest.mark.parametrize(
    ("seconds", "threads"),
    [
        ([8.0, 4.0, 2.0, 1.0], 8),
        ([8.0, 4.0, 2.1, 2.0], 4),  # eight are 5 % faster
        ([2.0, 2.0, 3.0, 9.0], 1),
        ([4.0, 4.1, 3.0, 5.0], 4),
    ],
)
def test_the_fewest_threads_that_are_about_as_fast_as_the_best_are_taken(seconds, threads):
    times = CpuTimes(32, 64, [1, 2, 4, 8], {"fp32": seconds, "bf16": [1.0, 9.0, 9.0, 9.0]})
    assert times.threads_for("fp32") == threads
    assert times.threads_for("fp16") == threads  # was not timed
    assert times.threads_for("bf16") == 1


def test_what_is_measured_while_the_cores_are_busy_is_taken_and_not_kept(tmp_path, monkeypatch):
    free = [False, True]
    monkeypatch.setattr(cpu_choice, "cores_are_free", lambda threads: free.pop(0))
    measuring(monkeypatch, fp32=[1.0, 2.0, 2.0, 2.0], bf16=3.0)
    assert cpu_times(32, 64, tmp_path).threads_for("fp32") == 1
    cpu_times.cache_clear()
    measuring(monkeypatch, fp32=[8.0, 4.0, 2.0, 1.0], bf16=3.0)
    for _ in range(2):  # then it is kept
        assert cpu_times(32, 64, tmp_path).threads_for("fp32") == 8
        cpu_times.cache_clear()


def test_cores_that_do_not_exist_are_not_free():
    before = torch.get_num_threads()
    assert not cores_are_free(10 * os.cpu_count())
    assert torch.get_num_threads() == before


def test_a_core_is_tried_with_its_threads_whatever_this_process_uses(monkeypatch):
    used = []
    real = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: used.append(torch.get_num_threads()) or real(a, b)
    )
    cores_are_free(2)
    assert set(used) == {2}


def test_another_cpus_measurement_is_not_taken(tmp_path, monkeypatch):
    measuring(monkeypatch, fp32=1.0)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    cpu_times(32, 64, tmp_path)
    cpu_times.cache_clear()
    measuring(monkeypatch, fp32=2.0, bf16=1.0)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert cpu_times(32, 64, tmp_path).faster == "bf16"


def test_all_threads_are_tried_and_their_number_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_choice, "thread_limit", lambda: 3)
    before = torch.get_num_threads()
    times = cpu_times(64, 64, tmp_path)
    assert times.threads == [1, 2, 3]
    assert all(len(of) == 3 and min(of) > 0 for of in times.seconds.values())
    assert torch.get_num_threads() == before


def test_products_are_timed_on_the_cpu_while_shapes_are_built_without_data(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_choice, "thread_limit", lambda: 1)
    with torch.device("meta"):
        times = cpu_times(1024, 1024, tmp_path)
    # 2 products of 256 x 1024 x 1024, 1.07 GFLOP: no core does 10 TFLOP/s.
    assert min(min(of) for of in times.seconds.values()) > 1e-4


def test_a_damaged_measurement_is_made_again(tmp_path):
    cpu_times(32, 64, tmp_path)
    (path,) = (tmp_path / "products").rglob("*.json")
    path.write_text("{")
    cpu_times.cache_clear()
    assert min(min(of) for of in cpu_times(32, 64, tmp_path).seconds.values()) > 0


def test_one_core_without_bf16_has_no_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert cpu_times(32, 64, tmp_path).dtype_notes() == ()
    monkeypatch.setattr(cpu_choice, "thread_limit", lambda: 1)
    cpu_times.cache_clear()
    assert cpu_times(32, 64, tmp_path) is None


def test_auto_is_measured_at_the_sizes_of_the_model_and_noted(tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("FEDSDR_CACHE", str(tmp_path))
    measuring(monkeypatch, fp32=3.0, bf16=[2.0, 1.0, 1.0, 1.0])
    config = ModelConfig(name=str(model_folder))
    assert (dtype_of(config), threads_of(config)) == ("bf16", 2)
    assert threads_of(ModelConfig(name=str(model_folder), dtype="fp32")) == 1
    base = load_base(config)
    assert base.model.dtype == torch.bfloat16
    assert any("bf16, whose 32 x 64 matrix products are 3.0 times" in note for note in base.notes)


def test_the_limit_is_the_number_before_this_process_changed_it():
    limit, before = thread_limit(), torch.get_num_threads()
    torch.set_num_threads(limit + 1)
    try:
        assert thread_limit() == limit
    finally:
        torch.set_num_threads(before)
