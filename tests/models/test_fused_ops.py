import shutil

import pytest
import torch

from fedsdr.models import fused_ops
from fedsdr.models.fused_ops import FrozenRMSNorm, compiled_on_cuda, compiles, label_losses


def passes(rows):
    """Losses and gradients of the functions that are compiled on CUDA."""
    draw = torch.Generator().manual_seed(rows)
    weight = torch.nn.Parameter(torch.rand(16, generator=draw), requires_grad=False)
    x = torch.randn(rows, 16, generator=draw, requires_grad=True)
    head = torch.nn.Linear(16, 40, bias=False).requires_grad_(False)
    head.weight.copy_(torch.randn(40, 16, generator=draw))
    labels = torch.randint(40, (rows,), generator=draw)
    losses = label_losses(FrozenRMSNorm(weight, 1e-5)(x), head, labels)
    losses.sum().backward()
    return losses.detach(), x.grad


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_functions_give_the_losses_and_gradients_of_plain_ones(monkeypatch, tmp_path):
    # Its own cache: that of the machine may hold what another version of PyTorch compiled.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    # setuptools, which the compiler imports, refuses a distutils that another test has loaded.
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")
    plain = [passes(rows) for rows in (7, 12, 30)]
    used = []
    real = torch.compile
    monkeypatch.setattr(fused_ops, "compiles", lambda x: True)
    monkeypatch.setattr(torch, "compile", lambda f, **how: used.append(f) or real(f, **how))
    for (losses, gradient), rows in zip(plain, (7, 12, 30), strict=True):
        again = passes(rows)
        torch.testing.assert_close(again[0], losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again[1], gradient, rtol=1e-5, atol=1e-6)
    assert len(used) == 3  # norm forward, norm backward, loss: once each, whatever the sizes


def test_nothing_is_compiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *a, **k: pytest.fail("compiled"))
    assert not compiles(torch.zeros(2))
    torch.testing.assert_close(compiled_on_cuda(torch.exp)(torch.zeros(2)), torch.ones(2))
