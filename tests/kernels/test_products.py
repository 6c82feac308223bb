"""Matrix products through oneDNN: exact, for any strides, and only where they are faster."""

from __future__ import annotations

import pytest
import torch

from monet.kernels import limits, products
from tests.tolerances import assert_close

needs_detour = pytest.mark.skipif(
    not products.has_onednn_detour(), reason="an Intel processor, or a torch without oneDNN's operator"
)


@pytest.fixture
def onednn_for_all(monkeypatch):
    monkeypatch.setattr(limits, "ONEDNN_FROM_PRODUCTS", 1)


def strided(matrix: torch.Tensor, how: str) -> torch.Tensor:
    if how == "columns of a wider one":
        wide = torch.full((matrix.shape[0], matrix.shape[1] + 5), torch.nan)
        wide[:, 2:-3] = matrix
        return wide[:, 2:-3]
    return {"contiguous": matrix, "transposed": matrix.t().contiguous().t(), "every second row": torch.stack(
        [matrix, torch.full_like(matrix, torch.nan)], 1).flatten(0, 1)[::2]}[how]  # fmt: skip


LAYOUTS = ["contiguous", "transposed", "columns of a wider one", "every second row"]


@needs_detour
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
def test_any_strides(left, right, onednn_for_all):
    a_MK, b_KN = torch.randn(33, 70), torch.randn(70, 130)
    a, b = strided(a_MK, left), strided(b_KN, right)
    assert products.takes_onednn(a, b)
    assert_close("product", products.product(a, b), a_MK.double() @ b_KN.double())


@needs_detour
def test_only_plain_float32_on_the_cpu(monkeypatch, onednn_for_all):
    a, b = torch.randn(4, 8), torch.randn(8, 4)
    assert products.takes_onednn(a, b)
    for other in (a.double(), a.bfloat16(), a.to("meta"), a[:0]):
        assert not products.takes_onednn(other, b.to(other))
    monkeypatch.setattr(products, "onednn_products", lambda: True)
    assert not products.takes_onednn(a, b)
    assert_close("product", products.product(a, b), a.double() @ b.double())


def test_small_products_stay_with_torch():
    assert not products.takes_onednn(torch.randn(64, 64), torch.randn(64, 64))


def test_bfloat16_is_noticed():
    assert products.is_float32(torch.mm)
    assert not products.is_float32(lambda a, b: (a.bfloat16() @ b.bfloat16()).float())


def test_another_operator_behind_the_name_is_passed_over(monkeypatch):
    def changed(*_):
        raise RuntimeError("takes other arguments")

    monkeypatch.setattr(products, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", changed)
    products.has_onednn_detour.cache_clear()
    try:
        assert not products.has_onednn_detour()
    finally:
        products.has_onednn_detour.cache_clear()


@pytest.mark.parametrize(
    ("processor", "slow"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f", True),
        ("vendor_id : AuthenticAMD\nflags : avx2", False),
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f", False),
    ],
)
def test_which_processors_mkl_serves_badly(processor, slow, monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text(processor)
    monkeypatch.setattr(products, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    products.mkl_is_slow.cache_clear()
    try:
        assert products.mkl_is_slow() == slow
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
        products.mkl_is_slow.cache_clear()
        assert not products.mkl_is_slow()
    finally:
        products.mkl_is_slow.cache_clear()
