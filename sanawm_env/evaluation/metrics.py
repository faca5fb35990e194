"""PSNR and SSIM of 8-bit pictures, one number a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PEAK = 255.0
# A perfect match has no finite PSNR; this squared error stands in for 0 and gives 98 dB, beyond any reconstruction.
SMALLEST_ERROR = 1e-5
SSIM_SIGMA, SSIM_WINDOW = 1.5, 11
SSIM_LUMINANCE, SSIM_CONTRAST = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def psnr(pictures: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64 [...].

    pictures, truth: uint8 [..., H, W, 3]. mask: bool [..., H, W], the pixels that count (all by default); a picture
    with none gives NaN.
    """
    error = (pictures.double() - truth.double()).square().mean(-1)
    counted = torch.ones_like(error) if mask is None else mask.to(error.dtype)
    mean = (error * counted).sum((-2, -1)) / counted.sum((-2, -1))
    return 10 * torch.log10(PEAK**2 / mean.clamp_min(SMALLEST_ERROR))


def ssim(pictures: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity, float64 [...]: Gaussian window of 11 pixels and sigma 1.5, mean over colours and places.

    pictures, truth: uint8 [..., H, W, 3], at least 6 pixels a side; their edges are reflected for the window, as in
    torchmetrics, which a test compares this with (it is an extra, and this runs without). Wang et al. 2004. mask: bool
    [..., H, W], the places that count (all by default), whose windows may reach beyond it; with none it is NaN.
    """
    shape = pictures.shape[:-3]
    x, y = (_reflected(image) for image in (pictures, truth))
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x = _blurred(x * x) - mean_x * mean_x
    variance_y = _blurred(y * y) - mean_y * mean_y
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_LUMINANCE) / (mean_x**2 + mean_y**2 + SSIM_LUMINANCE)
    structure = (2 * covariance + SSIM_CONTRAST) / (variance_x + variance_y + SSIM_CONTRAST)
    places = (luminance * structure).mean(1)
    if mask is None:
        return places.mean((1, 2)).reshape(shape)
    counted = mask.reshape(places.shape).to(places.dtype)
    return ((places * counted).sum((1, 2)) / counted.sum((1, 2))).reshape(shape)


def _reflected(pictures: Tensor) -> Tensor:
    """Pictures [..., H, W, 3] as float64 [N, 3, H, W] with a reflected margin of half a window."""
    images = pictures.reshape(-1, *pictures.shape[-3:]).movedim(-1, 1).double()
    return functional.pad(images, (SSIM_WINDOW // 2,) * 4, mode="reflect")


def _blurred(images: Tensor) -> Tensor:
    """Images [N, C, H, W] under the Gaussian window, only where it fits."""
    offset = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    weight = torch.exp(-(offset**2) / (2 * SSIM_SIGMA**2))
    weight = weight / weight.sum()
    flat = images.flatten(0, 1)[:, None]
    flat = functional.conv2d(functional.conv2d(flat, weight[None, None, :, None]), weight[None, None, None, :])
    return flat[:, 0].unflatten(0, images.shape[:2])


def mean_where_finite(values: Tensor) -> float:
    """Mean over the entries that are numbers; NaN when there is none."""
    return float(values[values.isfinite()].mean())
