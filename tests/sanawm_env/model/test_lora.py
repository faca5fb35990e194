"""Adapters merged into weights: the sum by hand, the names in use, and everything that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sanawm_env.errors import BundleError
from sanawm_env.model.lora import merge_lora, read_lora


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(6, 8)}), "norm": nn.LayerNorm(6)})


def adapter(prefix: str = "", rank: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        f"{prefix}attn.to_q.lora_A.weight": torch.randn(rank, 6, generator=draw),
        f"{prefix}attn.to_q.lora_B.weight": torch.randn(8, rank, generator=draw),
    }


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model.transformer."])
def test_the_product_is_added(prefix: str, tmp_path: Path) -> None:
    save_file(adapter(prefix), tmp_path / "lora.safetensors")
    merged, plain = module(), module()
    assert merge_lora(merged, read_lora(tmp_path / "lora.safetensors"), scale=0.5) == 1
    down, up = adapter().values()
    before, after = plain.attn.to_q, merged.attn.to_q
    torch.testing.assert_close(after.weight, before.weight + 0.5 * up @ down)
    assert torch.equal(after.bias, before.bias)
    x = torch.randn(3, 6)
    torch.testing.assert_close(after(x), before(x) + 0.5 * x @ down.T @ up.T)


def test_alpha_scales_by_the_rank() -> None:
    told, plain = module(), module()
    merge_lora(told, adapter() | {"attn.to_q.alpha": torch.tensor(4.0)})
    down, up = adapter().values()
    torch.testing.assert_close(told.attn.to_q.weight, plain.attn.to_q.weight + 2.0 * up @ down)


def test_sums_are_made_in_full_precision() -> None:
    small = module().bfloat16()
    merge_lora(small, adapter())
    down, up = adapter().values()
    wanted = (module().bfloat16().attn.to_q.weight.float() + up @ down).bfloat16()
    assert torch.equal(small.attn.to_q.weight, wanted)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attn.to_k.lora_A.weight": torch.zeros(2, 6), "attn.to_k.lora_B.weight": torch.zeros(8, 2)}, "attn.to_k"),
        ({"norm.lora_A.weight": torch.zeros(2, 6), "norm.lora_B.weight": torch.zeros(6, 2)}, "norm"),
        ({"attn.to_q.lora_B.weight": torch.zeros(7, 2)}, "attn.to_q"),
        ({"attn.to_q.weight": torch.zeros(8, 6)}, r"attn\.to_q\.weight"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_changes(change: dict[str, torch.Tensor], named: str) -> None:
    target, before = module(), module()
    with pytest.raises(BundleError, match=named):
        merge_lora(target, adapter() | change)
    assert torch.equal(target.attn.to_q.weight, before.attn.to_q.weight)


def test_half_a_pair_an_empty_file_and_no_file(tmp_path: Path) -> None:
    half = adapter()
    del half["attn.to_q.lora_B.weight"]
    with pytest.raises(BundleError, match=r"attn\.to_q"):
        merge_lora(module(), half)
    with pytest.raises(BundleError, match="it holds none"):
        merge_lora(module(), {})
    with pytest.raises(BundleError, match="cannot be read"):
        read_lora(tmp_path / "none.safetensors")
