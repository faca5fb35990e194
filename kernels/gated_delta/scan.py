"""The recurrence over frames as one operator with an adjoint of its own.

To autograd and to torch.compile it is one node: a loop over the frames of a clip, which a compiler unrolls, takes it
minutes, and autograd would keep every step. The adjoint of a scan is a scan the other way, with transposed transitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sanawm_env.kernels.chunk_frames import chunk_ends


def advanced(state: Tensor, gram: Tensor, write: Tensor, decay: Tensor) -> Tensor:
    """The state after a frame; decay [..., 1, 1]."""
    # Decay multiplies the old state before the delta update; what is written is not decayed.
    kept = decay * state
    return kept - product(gram, kept) + write


def product(x: Tensor, y: Tensor) -> Tensor:
    """x @ y, of which a single column is summed in the same order in any batch."""
    # A matrix times a single column is summed in another order in another batch; plain sums of its rows are not.
    return (x * y.transpose(-1, -2)).sum(-1, keepdim=True) if y.shape[-1] == 1 else x @ y


def _states(gram: Tensor, write: Tensor, g: Tensor, state: Tensor) -> list[Tensor]:
    """The forward state after every frame."""
    states = []
    for t in range(gram.shape[1]):
        state = advanced(state, gram[:, t], write[:, t], g[:, t])
        states.append(state)
    return states


def _behind(gram: Tensor, write: Tensor, g: Tensor, chunks: list[int]) -> list[Tensor | None]:
    """The backward state before every frame, from zero (None) at each chunk's end."""
    states: list[Tensor | None] = [None] * gram.shape[1]
    for begin, end in _spans(chunks):
        for t in range(end - 1, begin, -1):
            later = states[t]
            new = write[:, t].clone() if later is None else advanced(later, gram[:, t], write[:, t], g[:, t])
            states[t - 1] = new
    return states


def _spans(chunks: list[int]) -> Iterator[tuple[int, int]]:
    """First frame of each chunk, and the frame after its last."""
    return pairwise((0, *chunk_ends(tuple(chunks))))


def plain_scan(gram: Tensor, write: Tensor, decay: Tensor, state: Tensor, chunks: list[int]) -> tuple[Tensor, Tensor]:
    """As the reference's `delta_scan`, without the operator."""
    g = decay[..., None, None]
    forward, behind = _states(gram, write, g, state), _behind(gram, write, g, chunks)
    read = [x if y is None else x + y for x, y in zip(forward, behind, strict=True)]
    ends = chunk_ends(tuple(chunks))
    return torch.stack(read, dim=1), torch.stack([forward[end - 1] for end in ends], dim=1)


scan = torch.library.custom_op("sanawm_env::delta_scan", plain_scan, mutates_args=())


@scan.register_fake
def _(gram: Tensor, write: Tensor, decay: Tensor, state: Tensor, chunks: list[int]) -> tuple[Tensor, Tensor]:
    return write.new_empty(write.shape), state.new_empty((state.shape[0], len(chunks), *state.shape[1:]))


@torch.library.custom_op("sanawm_env::delta_scan_adjoint", mutates_args=())
def _adjoint(
    gram: Tensor,
    write: Tensor,
    decay: Tensor,
    state: Tensor,
    d_read: Tensor,
    d_after: Tensor,
    chunks: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of gram, write, decay and state; d_read, d_after: those of what `scan` returns."""
    with torch.autocast(gram.device.type, enabled=False):
        g, turned = decay[..., None, None], gram.transpose(-1, -2)

        def back(y: Tensor, t: int) -> Tensor:
            return g[:, t] * (y - product(turned[:, t], y))

        before = torch.stack([state, *_states(gram, write, g, state)[:-1]], dim=1)
        later = torch.stack(
            [torch.zeros_like(state) if x is None else x for x in _behind(gram, write, g, chunks)], dim=1
        )
        d_forward, d_behind = list(d_read.unbind(1)), [torch.zeros_like(state)] * gram.shape[1]
        for index, (begin, end) in reversed(list(enumerate(_spans(chunks)))):
            d_forward[end - 1] = d_forward[end - 1] + d_after[:, index]
            for t in range(end - 1, begin - 1, -1):
                if t + 1 < gram.shape[1]:
                    d_forward[t] = d_forward[t] + back(d_forward[t + 1], t + 1)
            for t in range(begin + 1, end):
                # Of the backward state before frame t, which frame t leads to.
                d_behind[t] = d_read[:, t - 1] + (back(d_behind[t - 1], t - 1) if t - 1 > begin else 0)
        d_state = back(d_forward[0], 0)
        one, other = torch.stack(d_forward, dim=1), torch.stack(d_behind, dim=1)
        d_gram = -g * (one @ before.transpose(-1, -2) + other @ later.transpose(-1, -2))
        d_decay = sum((y * (x - product(gram, x))).sum((-2, -1)) for y, x in ((one, before), (other, later)))
        assert isinstance(d_decay, Tensor)
        return d_gram, one + other, d_decay, d_state


@_adjoint.register_fake
def _(*given: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in given[:4])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, chunks = inputs
    ctx.save_for_backward(*tensors)
    ctx.chunks = chunks


def _differentiate(ctx: Any, d_read: Tensor, d_after: Tensor) -> tuple[Tensor | None, ...]:
    return (*_adjoint(*ctx.saved_tensors, d_read, d_after, ctx.chunks), None)


scan.register_autograd(_differentiate, setup_context=_keep)
