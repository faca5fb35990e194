"""Window attention over a prefix of the slots, a length a world."""

import torch

from sanawm_env.kernels.window_attention import window_attention


def explicit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, length: int, scale: float) -> torch.Tensor:
    weight = torch.einsum("qnd,knd->nqk", q, k[:length]).mul(scale).softmax(-1)
    return torch.einsum("nqk,knd->qnd", weight, v[:length])


def test_each_world_reads_its_own_prefix_and_nothing_behind_it() -> None:
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(4, 5, 2, 8, generator=draw)
    k, v = (torch.randn(4, 11, 2, 8, generator=draw) for _ in range(2))
    lengths = (11, 7, 7, 3)
    for row, length in enumerate(lengths):
        k[row, length:], v[row, length:] = float("nan"), float("nan")
    got = window_attention(q, k, v, lengths, scale=0.3)
    for row, length in enumerate(lengths):
        assert torch.allclose(got[row], explicit(q[row], k[row], v[row], length, 0.3), atol=1e-6)


def test_a_world_does_not_depend_on_its_batch() -> None:
    draw = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(3, 40, 2, 16, generator=draw) for _ in range(3))
    whole = window_attention(q, k, v, (40, 24, 40), scale=0.25)
    for row, length in enumerate((40, 24, 40)):
        alone = window_attention(q[row : row + 1], k[row : row + 1], v[row : row + 1], (length,), scale=0.25)
        assert torch.equal(whole[row], alone[0])
