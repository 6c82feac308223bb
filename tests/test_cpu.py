"""Settings for the CPU: products stay float32, and a setting that breaks this is reverted."""

from __future__ import annotations

import pytest
import torch

from monet import cpu
from monet.kernels import products


@pytest.fixture(autouse=True)
def same_precision_afterwards():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_the_setting_is_taken(monkeypatch):
    monkeypatch.setattr(cpu, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(cpu, "is_float32", lambda multiply: torch.get_float32_matmul_precision() == "medium")
    assert cpu.use_onednn_products()
    assert torch.get_float32_matmul_precision() == "medium" and products.onednn_products()


def test_products_stay_float32(monkeypatch):
    monkeypatch.setattr(cpu, "mkl_is_slow", lambda: True)
    cpu.use_onednn_products()
    a, b = torch.randn(300, 700), torch.randn(700, 200)
    exact = a.double() @ b.double()
    assert ((a @ b).double() - exact).norm() / exact.norm() < 1e-6


def test_a_product_in_bfloat16_takes_the_setting_back(monkeypatch):
    monkeypatch.setattr(cpu, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(cpu, "is_float32", lambda multiply: False)
    assert not cpu.use_onednn_products()
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_processor_that_mkl_serves_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu, "mkl_is_slow", lambda: False)
    assert not cpu.use_onednn_products()
    assert torch.get_float32_matmul_precision() == "highest"


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: object())
    assert not cpu.keep_freed_memory()


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no precision for each backend")
def test_a_precision_chosen_for_each_backend_is_left_alone(monkeypatch):
    def mixed() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(cpu, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    assert not cpu.use_onednn_products()
    assert not products.onednn_products()
    monkeypatch.undo()
