"""Adapters merged into weights that are read: the sum by hand, the names in use, and everything that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sanawm_env.errors import BundleError
from sanawm_env.model.lora import merging, read_lora


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(6, 8)}), "norm": nn.LayerNorm(6)})


def merged(target: nn.Module, told: dict[str, torch.Tensor], scale: float = 1.0) -> nn.Module:
    """`target` with what is read of it through the adapter."""
    read = merging(target, target.state_dict().__getitem__, told, torch.device("cpu"), scale)
    target.load_state_dict({name: read(name).clone() for name in target.state_dict()})
    return target


def adapter(prefix: str = "", rank: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        f"{prefix}attn.to_q.lora_A.weight": torch.randn(rank, 6, generator=draw),
        f"{prefix}attn.to_q.lora_B.weight": torch.randn(8, rank, generator=draw),
    }


@pytest.mark.parametrize("prefix", ["", "transformer.", "base_model.model.transformer."])
def test_the_product_is_added(prefix: str, tmp_path: Path) -> None:
    save_file(adapter(prefix), tmp_path / "lora.safetensors")
    plain, adapted = module(), merged(module(), read_lora(tmp_path / "lora.safetensors"), scale=0.5)
    down, up = adapter().values()
    before, after = plain.attn.to_q, adapted.attn.to_q
    torch.testing.assert_close(after.weight, before.weight + 0.5 * up @ down)
    assert torch.equal(after.bias, before.bias) and torch.equal(adapted.norm.weight, plain.norm.weight)
    x = torch.randn(3, 6)
    torch.testing.assert_close(after(x), before(x) + 0.5 * x @ down.T @ up.T)


def test_alpha_scales_by_the_rank() -> None:
    told, plain = merged(module(), adapter() | {"attn.to_q.alpha": torch.tensor(4.0)}), module()
    down, up = adapter().values()
    torch.testing.assert_close(told.attn.to_q.weight, plain.attn.to_q.weight + 2.0 * up @ down)


def test_sums_are_made_in_full_precision() -> None:
    small = merged(module().bfloat16(), adapter())
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
def test_what_does_not_fit_is_listed_before_anything_is_read(change: dict[str, torch.Tensor], named: str) -> None:
    read = list[str]()
    with pytest.raises(BundleError, match=named):
        merging(module(), read.append, adapter() | change, torch.device("cpu"))  # type: ignore[arg-type]
    assert not read


def test_half_a_pair_an_empty_file_and_no_file(tmp_path: Path) -> None:
    half = adapter()
    del half["attn.to_q.lora_B.weight"]
    with pytest.raises(BundleError, match=r"attn\.to_q"):
        merged(module(), half)
    with pytest.raises(BundleError, match="it holds none"):
        merged(module(), {})
    with pytest.raises(BundleError, match="cannot be read"):
        read_lora(tmp_path / "none.safetensors")
