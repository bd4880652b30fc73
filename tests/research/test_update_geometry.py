import pytest
import torch

from fedsdr.research.diagnose.update_geometry import cosine_of, cosines, off_diagonal


def test_the_cosine_is_over_all_tensors_together():
    a = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([[2.0]])}
    b = {"x": torch.tensor([2.0, 0.0]), "y": torch.tensor([[1.0]])}
    flat = [torch.cat([t["x"], t["y"].flatten()]) for t in (a, b)]
    assert cosine_of(a, b) == pytest.approx(float(torch.cosine_similarity(*flat, dim=0)))
    assert cosine_of(a, {"x": torch.zeros(2), "y": torch.zeros(1, 1)}) is None


def test_the_mean_leaves_the_diagonal_and_what_is_not_known_out():
    assert off_diagonal([[9, 1, None], [2, 9, 3], [None, 4, 9]]) == 2.5
    assert off_diagonal([[1.0]]) is None
    e = [{"x": torch.tensor([1.0, 0.0])}, {"x": torch.tensor([1.0, 1.0])}]
    assert off_diagonal(cosines(e)) == pytest.approx(0.5**0.5)
