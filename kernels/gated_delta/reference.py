"""Frame-wise gated delta rule in plain PyTorch, written to be read (spec dit.md 3.8).

One recurrence step per latent frame: the S tokens of a frame act at once and all read the state before the update. P,
not I - P, is formed, so that low-precision operands lose nothing (spec dit.md 6.3). Letters: B worlds, T frames, S
tokens a frame, N heads, D key lanes, E value lanes, K chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sanawm_env.kernels.backend import needs_gradients
from sanawm_env.kernels.chunk_frames import chunk_ends
from sanawm_env.kernels.gated_delta.scan import plain_scan, product, scan


def key_scale(width: int, tokens: int) -> float:
    """What keys of `width` lanes are multiplied by so that one frame of `tokens` tokens is a contraction (spec
    training.md 1.3).
    """
    return (width * tokens) ** -0.5


def delta_scan(
    gram: Tensor, write: Tensor, decay: Tensor, state: Tensor, chunks: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Forward (inclusive) plus backward (exclusive, inside a chunk) states of every frame.

    gram: [B, T, N, D, D], sum of beta k k^T of each frame. write: [B, T, N, D, E], sum of beta k v^T. decay: [B, T, N].
    state: [B, N, D, E] carried in. chunks: lengths whose sum is T; the backward scan starts from zero at each chunk's
    end. Returns the state each frame reads, [B, T, N, D, E], and the forward state after each chunk, [B, K, N, D, E].
    """
    # An operator's first call loads torch's compiler, which takes seconds; where nothing is compiled or differentiated
    # it gives nothing for them.
    as_operator = torch.compiler.is_compiling() or needs_gradients(gram, write, decay, state)
    return (scan if as_operator else plain_scan)(gram, write, decay, state, list(chunks))


def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, state: Tensor, chunks: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Gated delta rule without normaliser: the camera branch.

    q, k: [B, T, S, N, D]; v: [B, T, S, N, E]; beta: [B, T, S, N]; decay: [B, T, N] in (0, 1); state: [B, N, D, E];
    computed in fp32. Returns the read-out [B, T, S, N, E] and the state after each chunk [B, K, N, D, E].
    """
    with torch.autocast(q.device.type, enabled=False):
        frames = (*q.shape[:2], q.shape[3])
        q, k, v, weighted = (_frames_first(x) for x in (q, k, v, k * beta[..., None]))
        gram, write = (product(weighted.transpose(1, 2), x).unflatten(0, frames) for x in (k, v))
        read, after = delta_scan(gram, write, decay.float(), state.float(), chunks)
        return product(q, read.flatten(0, 2)).unflatten(0, frames).transpose(2, 3), after


def _frames_first(x: Tensor) -> Tensor:
    """[B, T, S, N, D] as one matrix a frame and head, [B T N, S, D] fp32, in memory of that order."""
    return x.float().transpose(2, 3).contiguous().flatten(0, 2)


def normalised_gated_delta(
    q: Tensor,
    k: Tensor,
    q_rotated: Tensor,
    k_rotated: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor,
    state: Tensor,
    normaliser: Tensor,
    chunks: tuple[int, ...],
    eps: float = 1e-8,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gated delta rule divided by its running denominator: the main branch.

    The denominator is the same rule with target 1 on unrotated keys. Shapes as in `gated_delta`; normaliser: [B, N, D].
    Returns the output [B, T, S, N, E] and, after each chunk, the state [B, K, N, D, E] and the normaliser [B, K, N, D].
    """
    numerator, after = gated_delta(q_rotated, k_rotated, v, beta, decay, state, chunks)
    ones = torch.ones_like(v[..., :1])
    denominator, normaliser_after = gated_delta(q, k, ones, beta, decay, normaliser[..., None], chunks)
    return numerator / (denominator + eps), after, normaliser_after[..., 0]


def token_recurrence(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, state: Tensor, chunks: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """`gated_delta` from the recurrence's definition, token sums written out, one frame at a time; the oracle of its
    tests.
    """
    frames = q.shape[1]
    chunk_of = [index for index, length in enumerate(chunks) for _ in range(length)]
    forward: list[Tensor] = []
    for t in range(frames):
        forward.append(_frame_update(state if t == 0 else forward[-1], k[:, t], v[:, t], beta[:, t], decay[:, t]))
    outputs = []
    for t in range(frames):
        backward = torch.zeros_like(state)
        for source in range(frames - 1, t, -1):
            if chunk_of[source] == chunk_of[t]:
                backward = _frame_update(backward, k[:, source], v[:, source], beta[:, source], decay[:, source])
        outputs.append(torch.einsum("bsnd,bnde->bsne", q[:, t], forward[t] + backward))
    return torch.stack(outputs, dim=1), torch.stack([forward[end - 1] for end in chunk_ends(chunks)], dim=1)


def _frame_update(state: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor) -> Tensor:
    kept = decay[..., None, None] * state
    error = v - torch.einsum("bsnd,bnde->bsne", k, kept)
    return kept + torch.einsum("bsnd,bsn,bsne->bnde", k, beta, error)
