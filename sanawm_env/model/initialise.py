"""Initial weights for training a denoiser from scratch (measured choices in DECISIONS.md)."""

from __future__ import annotations

import math

import torch
from torch import nn

from sanawm_env.model.attention import GatedDeltaAttention, SelfAttention, ShortConvolution
from sanawm_env.model.denoiser import Block, Denoiser

SLOWEST_DECAY, FASTEST_DECAY = 0.004, 0.13


@torch.no_grad()
def initialise(denoiser: Denoiser) -> Denoiser:
    """Fills the weights in place: residual outputs zero, so that a fresh model is its own embedding, and slow
    decays.
    """
    for module in denoiser.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            _matrix(module)
        elif isinstance(module, ShortConvolution):
            module.weight.zero_()
            module.weight[..., -1] = 1.0
        elif isinstance(module, Block):
            _block(module)
    for module in denoiser.modules():
        if isinstance(module, SelfAttention):
            _attention(module)
        elif isinstance(module, Block):
            for silent in (module.plucker_proj, module.mlp.point_conv.conv, module.mlp.t_conv, module.attn.proj):
                silent.weight.zero_()
    nn.init.zeros_(denoiser.final_layer.linear.weight)
    nn.init.normal_(denoiser.get_parameter("t_block.1.weight"), std=0.02)
    return denoiser


def _matrix(module: nn.Linear | nn.Conv2d | nn.Conv3d) -> None:
    fan_in = module.weight[0].numel()
    nn.init.trunc_normal_(module.weight, std=fan_in**-0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _block(block: Block) -> None:
    block.scale_shift_table.zero_()
    block.scale_shift_table[[2, 5]] = 1.0  # both residual gates open; their branches start at zero


def _attention(attention: SelfAttention) -> None:
    if not isinstance(attention, GatedDeltaAttention):
        return
    heads = attention.heads
    steps = torch.linspace(math.log(SLOWEST_DECAY), math.log(FASTEST_DECAY), heads).exp()
    attention.A_log.zero_()
    attention.dt_bias.copy_(torch.log(torch.expm1(steps)))
    attention.gate_proj.weight.mul_(0.1)
    attention.beta_proj.weight.mul_(0.1)
    attention.beta_proj.bias.fill_(1.0)
    # Without a denominator the camera read-out is tens of times the main one at the start.
    attention.q_norm_cam.weight.fill_(attention.config.head_dim**-0.5)
    attention.out_proj_cam.weight.mul_(0.25)


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random values in every parameter, as parity tests need them (spec dit.md 6.6): nothing stays zero or one."""
    for name, parameter in module.named_parameters():
        if name.endswith("A_log"):
            parameter.uniform_(0.2, 1.2, generator=generator).log_()
        elif name.endswith("dt_bias"):
            parameter.normal_(-2.0, 0.5, generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.1, generator=generator)
        else:
            parameter.normal_(1.0, 0.1, generator=generator)
    return module
