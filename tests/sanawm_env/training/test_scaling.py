"""What trains a large module: batches add up to a step, activations are computed again, weights lie in parts, and the
memory is estimated.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.sanawm_env.training.small import CONFIG, clip, learner, loss

from sanawm_env.errors import ConfigError
from sanawm_env.model.config import DenoiserConfig, Variant, rooms_config, tiny_config
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.lora import LAYERS, LowRank, adapted_layers
from sanawm_env.training import run_stage
from sanawm_env.training.estimate import GIB, KEPT, Estimate, adapting, estimate
from sanawm_env.training.learner import Learner
from sanawm_env.training.objective import blank_memory
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.scaling import Scaling

VARIANTS: tuple[Variant, ...] = ("bidirectional", "teacher", "distilled")


def test_batches_add_up_to_a_step() -> None:
    one, two = learner(Scaling()), learner(Scaling(accumulate=2))
    assert one.descend(loss(one, slice(0, 2)), 1.0)
    assert not two.descend(loss(two, slice(0, 1)), 1.0)
    assert two.descend(loss(two, slice(1, 2)), 1.0)
    torch.testing.assert_close(one.norm, two.norm)
    for name, x in one.module.state_dict().items():
        torch.testing.assert_close(x, two.module.state_dict()[name], rtol=1e-4, atol=1e-4)


def test_activations_computed_again_give_the_same_gradients() -> None:
    one, two = learner(Scaling()), learner(Scaling(checkpointed=True))
    kept = {}
    for name, made in (("kept", one), ("again", two)):
        sizes = []

        def note(x: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            value = loss(made, slice(0, 2))
        kept[name] = sum(sizes)
        value.backward()
    assert kept["again"] < 0.2 * kept["kept"]
    for (name, x), y in zip(one.module.named_parameters(), two.module.parameters(), strict=True):
        assert (x.grad is None) == (y.grad is None), name
        if x.grad is not None and y.grad is not None:
            assert torch.equal(x.grad, y.grad), name


def test_weights_in_parts_learn_as_whole_ones(tmp_path: Path) -> None:
    """Two processes, each with half of every weight and one of two clips, against one process with both clips."""
    whole = learner(Scaling())
    for _ in range(2):
        whole.descend(loss(whole, slice(0, 2)), 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.sanawm_env.training.sharded", str(tmp_path)]
    root = Path(__file__).parents[3]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    ranks = [
        subprocess.Popen(command, env={**os.environ, **told, "PYTHONPATH": path, "RANK": str(rank)}, cwd=root)
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    made = torch.load(tmp_path / "state.pt", weights_only=True)
    assert made["own"] < 0.7 * made["all"]
    for name, x in whole.module.state_dict().items():
        torch.testing.assert_close(made["state"]["module"][name], x, rtol=1e-3, atol=1e-4)
    # A run that goes on with whole weights reads what one in parts has left.
    again = learner(Scaling())
    again.load(made["state"])
    again.descend(loss(again, slice(0, 2)), 1.0)
    whole.descend(loss(whole, slice(0, 2)), 1.0)
    for name, x in whole.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[name], x, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_sharded_says_so() -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        learner(Scaling(sharded=True))
    with pytest.raises(ConfigError, match="accumulate is 0"):
        Scaling(accumulate=0)
    ranks = Ranks()
    ranks.count = 2
    with pytest.raises(ConfigError, match="muon_lr=null"):
        Learner(Denoiser(CONFIG), ranks, lr=1e-3, muon_lr=0.02, clip=1.0, scaling=Scaling(sharded=True))


def test_the_released_model_s_memory() -> None:
    one, four = estimate(Estimate()), estimate(Estimate(gpus=4))
    assert 2.5e9 < one["parameters"] < 2.8e9
    assert one["weights"] == round(20 * one["parameters"] / GIB, 2) and four["weights"] == round(one["weights"] / 4, 2)
    assert four["gib"] < one["gib"] < estimate(Estimate(checkpointed=False))["gib"]
    assert run_stage("estimate", {"device": "cpu", "gpus": 4}) == four
    with pytest.raises(ConfigError, match="gpus is 0"):
        Estimate(gpus=0)


def test_the_memory_of_adapters() -> None:
    told = {variant: estimate(Estimate(method="lora", variant=variant, latents=22)) for variant in VARIANTS}
    assert told["teacher"] == told["bidirectional"] and told["teacher"]["gib"] < told["distilled"]["gib"] < 80
    one = told["teacher"]
    denoiser = LowRank(small := Denoiser(CONFIG), names := adapted_layers(small), 16, 16.0)
    assert sum(x.numel() for x in denoiser.parameters()) == estimated(CONFIG) and names
    assert one["adapters"] == round(20 * one["adapter_parameters"] / GIB, 2) and one["memory"] == 0
    assert estimate(Estimate(method="lora", rank=32))["adapter_parameters"] == 2 * one["adapter_parameters"]
    assert run_stage("estimate", {"device": "cpu", "method": "lora", "latents": 22}) == one
    with pytest.raises(ConfigError, match="adapters are neither sharded nor distilled"):
        Estimate(method="lora", gpus=2)


def test_the_page_shows_the_estimate() -> None:
    page = (Path(__file__).parents[3] / "examples" / "adapt.md").read_text()
    for latents in (13, 22, 43, 61, 121):
        teacher, distilled = (
            estimate(Estimate(method="lora", variant=variant, latents=latents))["gib"]
            for variant in ("teacher", "distilled")
        )
        seconds = (1 + 8 * (latents - 1)) / 16
        assert f"| {latents} ({seconds:.1f}) | {teacher:.1f} | {distilled:.1f} |" in page
    whole = estimate(Estimate(method="lora", latents=22, checkpointed=False))["gib"]
    assert f"Without `scaling.checkpointed` 22 latents take {whole:.0f} GiB" in page


def estimated(config: DenoiserConfig) -> int:
    world = replace(tiny_config(), denoiser=config)
    told = adapting(world, 16, LAYERS, 1, 5, checkpointed=True)
    count: int = told["adapter_parameters"]
    return count


@pytest.mark.parametrize(("every", "most"), [(100, KEPT), (1, KEPT)])
def test_a_block_keeps_no_more_than_is_estimated(every: int, most: int) -> None:
    """Bytes kept for the gradient of one more block, in tensors of a token's width."""
    config = replace(rooms_config().denoiser, softmax_every_n=every, depth=1)
    kept = [_kept(replace(config, depth=depth)) for depth in (1, 2)]
    assert 0.7 * most < kept[1] - kept[0] <= most


def _kept(config: DenoiserConfig) -> float:
    denoiser, grid = Denoiser(config), (16, 20)
    own = {p.untyped_storage().data_ptr() for p in denoiser.parameters()}
    _, given, chunks = clip(5, 1, grid)
    x, sizes, alive = torch.randn(1, 5, config.in_channels, *grid), {}, []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        denoiser.predict_clean(x, torch.full((1, 5), 500.0), given, chunks, blank_memory(denoiser, x))
    return sum(sizes.values()) / (4 * 5 * 320 * config.hidden_size)
