"""PSNR and SSIM against hand-made values and against torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch

from sanawm_env.evaluation.metrics import mean_where_finite, psnr, ssim


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 24, 32, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_psnr_of_a_constant_error() -> None:
    truth = torch.full((2, 3, 8, 8, 3), 100, dtype=torch.uint8)
    assert psnr(truth + 10, truth).flatten().tolist() == pytest.approx([20 * math.log10(255 / 10)] * 6)


def test_psnr_counts_masked_pixels_only() -> None:
    truth = torch.full((1, 4, 4, 3), 50, dtype=torch.uint8)
    made = truth.clone()
    made[:, :2] += 20
    made[:, 2:] += 5
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    assert float(psnr(made, truth, mask)) == pytest.approx(20 * math.log10(255 / 5))


def test_psnr_does_not_wrap_around() -> None:
    dark, light = torch.zeros(4, 4, 3, dtype=torch.uint8), torch.full((4, 4, 3), 255, dtype=torch.uint8)
    assert float(psnr(dark, light)) == pytest.approx(0.0)


def test_nothing_visible_is_left_out_of_the_mean() -> None:
    empty = torch.zeros(2, 24, 32, dtype=torch.bool)
    empty[1] = True
    values = psnr(pictures(2), pictures(2, seed=1), empty)
    assert values[0].isnan()
    assert mean_where_finite(values) == pytest.approx(float(values[1]))


def test_equal_pictures() -> None:
    same = pictures(2)
    assert ssim(same, same).tolist() == pytest.approx([1.0, 1.0])
    assert psnr(same, same).isfinite().all()


def test_ssim_equals_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is an extra")
    truth = pictures(3)
    made = (truth.float() * 0.8 + 20 + 10 * torch.randn(truth.shape)).clamp(0, 255).to(torch.uint8)
    for one, other in zip(made, truth):
        expected = reference.structural_similarity_index_measure(
            one.permute(2, 0, 1)[None].double(), other.permute(2, 0, 1)[None].double(), data_range=255.0
        )
        assert float(ssim(one, other)) == pytest.approx(float(expected), abs=1e-6)
