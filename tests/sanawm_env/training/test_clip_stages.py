"""The stages of the recipe on tiny worlds: their losses fall on clips that stay, what they make starts from, and their
bundles open.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sanawm_env import bundle
from sanawm_env.errors import ConfigError
from sanawm_env.evaluation.rooms import evaluate
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.config import Schedule
from sanawm_env.model.initialise import initialise
from sanawm_env.training import run_stage
from sanawm_env.training.clip_stage import ClipStage, many_steps, turned
from sanawm_env.training.denoiser import BidirectionalStage, BidirectionalTraining, DenoiserStage, TeacherTraining
from sanawm_env.training.distill import DistillStage, DistillTraining
from sanawm_env.training.judges import Adversary, Discriminator, Scores
from sanawm_env.training.objective import blank_memory, clip_loss, noised, velocity
from sanawm_env.training.ode import OdeStage, OdeTraining
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.self_forcing import score_chunks
from sanawm_env.training.stages import SMOKE_CLIPS, SMOKE_STEPS, _read
from sanawm_env.world import WorldModel

STEPS = Schedule(steps=4, shift=2.0, guidance=1.0)


def ranks() -> Ranks:
    made = Ranks()
    made.device = torch.device("cpu")
    return made


def settings(kind: type[Any], out: Path, **given: Any) -> Any:
    small = SMOKE_CLIPS | {name: x for name, x in SMOKE_STEPS.items() if name in kind.__dataclass_fields__}
    return _read(kind, {"out": out, "lr": 3e-3, "muon_lr": None, "warmup": 1, **given}, small)


def fresh(model: WorldModel) -> WorldModel:
    """The same world with weights that training begins with."""
    return WorldModel(model.config, initialise(copy.deepcopy(model.denoiser)), model.autoencoder)


def losses(stage: ClipStage, steps: int) -> list[float]:
    bank, weight = stage.new_bank()
    return [float(stage.step(bank, stage.drawn(bank, 2), weight)[0]) for _ in range(steps)]


def scores_of(stage: DistillStage) -> Scores:
    scores = stage.judges["scores"]
    assert isinstance(scores, Scores)
    return scores


@pytest.fixture(scope="module")
def teacher(tiny_model: WorldModel) -> WorldModel:
    return turned(tiny_model, "teacher", **many_steps(STEPS))


def test_many_steps_hold_those_of_a_student() -> None:
    sixteen = Schedule(steps=16, shift=2.0, guidance=1.0).timesteps
    assert sixteen[::4] == STEPS.timesteps == (1000, 857, 667, 400) and sixteen[-1] == 118


def test_the_teacher_learns_with_its_own_rollouts_as_history(tiny_model: WorldModel, tmp_path: Path) -> None:
    given = settings(TeacherTraining, tmp_path, rolled=2, bank=2)
    stage = DenoiserStage(given, turned(fresh(tiny_model), "teacher", **many_steps(STEPS)), ranks())
    bank, weight = stage.new_bank()
    before = bank.history.clone()
    found = [float(stage.step(bank, bank.draw(2), weight)[0]) for _ in range(30)]
    assert np.mean(found[-8:]) < 0.75 * np.mean(found[:8])
    assert torch.equal(bank.history, before)  # only a refresh rolls out
    stage.refresh(bank)
    assert torch.equal(bank.history[:, 0], bank.latents[:, 0])
    assert not torch.equal(bank.history[:, 1:], bank.latents[:, 1:])


def test_a_model_that_reads_text_is_trained_with_one(tiny_model: WorldModel, tmp_path: Path) -> None:
    denoiser = replace(tiny_model.config.denoiser, caption_channels=12, caption_length=4, cross_heads=2)
    model = WorldModel.random(replace(tiny_model.config, denoiser=denoiser))
    text = {"hidden": torch.randn(1, 4, 12), "mask": torch.ones(1, 4, dtype=torch.bool)}
    given = settings(TeacherTraining, tmp_path, rolled=2, bank=2)
    start = turned(model, "teacher", **many_steps(STEPS))
    stage = DenoiserStage(given, start, ranks(), text=text)
    bank, weight = stage.new_bank()
    stage.refresh(bank)  # rolls out by world.step, which reads the text too
    before = {name: x.clone() for name, x in stage.denoiser.state_dict().items() if "y_embedder" in name}
    stage.step(bank, bank.draw(2), weight)
    assert before and all(not torch.equal(x, stage.denoiser.state_dict()[name]) for name, x in before.items())
    assert set(stage.validate(frames=8)) == {"psnr_8"}
    first = OdeStage(settings(OdeTraining, tmp_path / "ode", timesteps=(1000, 667)), start, ranks(), text=text)
    student = turned(first.teacher, "distilled", timesteps=(1000, 600))
    distilled = settings(DistillTraining, tmp_path / "distill", real="given", every=1)
    for one in (first, DistillStage(distilled, student, start, ranks(), text=text)):
        assert np.isfinite(losses(one, 1)[0])
    silent = DenoiserStage(given, start, ranks())
    bank, weight = silent.new_bank()
    with pytest.raises(ConfigError, match="reads text, the clips have none; embed a prompt"):
        silent.step(bank, bank.draw(2), weight)


def test_the_bidirectional_model_learns_clips_as_a_whole(tiny_model: WorldModel, tmp_path: Path) -> None:
    given = settings(BidirectionalTraining, tmp_path)
    stage = BidirectionalStage(given, turned(fresh(tiny_model), "bidirectional", **many_steps(STEPS)), ranks())
    bank, weight = stage.new_bank()
    clips = bank.draw(4)
    level = torch.full(clips.latents.shape[:2], 800.0)
    level[:, 0] = 0
    noisy, whole = noised(clips.latents, level), ChunkGrid((5,), opening=True)

    def error() -> float:
        with torch.no_grad():
            loss = clip_loss(stage.denoiser, clips.latents, level, stage.given(clips), whole, weight, velocity, noisy)
        return float(loss)

    before = error()
    for _ in range(30):
        stage.step(bank, bank.draw(2), weight)
    assert error() < 0.8 * before
    assert not stage.world.steppable and set(stage.validate(frames=8)) == {"psnr_8"}


def test_a_student_begins_as_its_teachers_trajectories_end(teacher: WorldModel, tmp_path: Path) -> None:
    given = settings(OdeTraining, tmp_path, timesteps=(1000, 667))
    stage = OdeStage(given, teacher, ranks())
    bank, weight = stage.new_bank()
    clips = bank.draw(2)
    assert clips.path.shape == (3, 2, 5, 8, *teacher.config.grid) and torch.equal(clips.latents, clips.path[-1])
    assert torch.equal(clips.path[:, :, 0], clips.path[:1, :, 0].expand(3, -1, -1, -1, -1))
    # Of noise at level 1000, a little closer to the end at 667.
    far, near = ((clips.path[k] - clips.path[-1])[:, 1:].abs().mean() for k in (0, 1))
    assert 0.9 < float(clips.path[0][:, 1:].std()) < 1.1 and float(near) < float(far)
    found = [float(stage.step(bank, bank.draw(2), weight)[0]) for _ in range(40)]
    assert np.mean(found[-10:]) < 0.8 * np.mean(found[:10])
    assert stage.world.variant == "distilled" and stage.world.timesteps == (1000, 667)
    with pytest.raises(ConfigError, match="levels at which the teacher steps"):
        OdeStage(replace(given, timesteps=(1000, 500)), teacher, ranks())


def test_distillation_trains_student_and_fake_score(
    teacher: WorldModel, tiny_model: WorldModel, tmp_path: Path
) -> None:
    real = turned(fresh(tiny_model), "bidirectional", **many_steps(STEPS))
    given = settings(
        DistillTraining, tmp_path, real="given", every=2, bank=6, rolled=6, critic_lr=3e-3, timesteps=(1000, 600)
    )
    stage = DistillStage(given, turned(teacher, "distilled"), real, ranks())
    before = {name: x.clone() for name, x in stage.denoiser.state_dict().items()}
    scores = scores_of(stage)
    frozen = {name: x.clone() for name, x in scores.real.state_dict().items()}
    assert np.isfinite(losses(stage, 8)).all()
    moved = [name for name, x in stage.denoiser.state_dict().items() if not torch.equal(x, before[name])]
    assert len(stage._seen) == 4 and len(stage._rollouts) == 1  # of the last steps, and what is left
    assert len(moved) > 0.8 * len(dict(stage.denoiser.named_parameters())) and stage.run.step == 8
    assert all(torch.equal(x, frozen[name]) for name, x in scores.real.state_dict().items())
    assert set(stage.figures()) == {"scores", "truth"} and float(stage.figures()["scores"]) > 0


def test_an_adversary_learns_the_truth_and_moves_the_student(teacher: WorldModel, tmp_path: Path) -> None:
    few = {"matching": 0.0, "adversary": 1.0, "truth": 0.0, "every": 1, "rolled": 2, "timesteps": (1000,)}
    stage = DistillStage(settings(DistillTraining, tmp_path, **few), turned(teacher, "distilled"), None, ranks())
    adversary = stage.judges["adversary"]
    assert list(stage.judges) == ["adversary"] and isinstance(adversary, Adversary)
    losses(stage, 1)
    assert all(p.grad is None for p in adversary.discriminator.parameters())  # the student's loss leaves nothing in it
    (seen,) = stage._seen
    before = float(adversary.error(seen))
    for _ in range(40):
        stage._follow(seen)
    assert float(adversary.error(seen)) < min(0.7 * before, 1.5)  # 2 is what it has where it cannot tell
    assert adversary.discriminator(seen.latents).shape == (2, 5, *(-(-n // 2) for n in seen.latents.shape[-2:]))
    made = seen.made.clone().requires_grad_(True)
    adversary.objection(made, stage.given(seen)).backward()
    assert made.grad is not None and not made.grad[:, 0].any() and made.grad[:, 1:].abs().amax((2, 3, 4)).all()
    was = stage.denoiser.get_parameter("blocks.0.attn.qkv.weight").detach().clone()
    losses(stage, 1)
    assert not torch.equal(was, stage.denoiser.get_parameter("blocks.0.attn.qkv.weight"))


def test_a_discriminator_is_bounded() -> None:
    """However large its weights have grown."""
    torch.manual_seed(0)
    discriminator = Discriminator(4, width=8).eval()
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.mul_(1000.0) if parameter.ndim > 1 else parameter.zero_()
    x, y = torch.randn(2, 1, 3, 4, 8, 8)
    assert (discriminator(x) - discriminator(y)).norm() < 30 * (x - y).norm()


def test_in_bf16_distillation_still_trains_every_weight(
    teacher: WorldModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autocast keeps cast weights; those that a rollout cast without gradients must not serve the pass behind it."""
    given = settings(DistillTraining, tmp_path, real="given", every=1, rolled=2, timesteps=(1000, 600))
    stage = DistillStage(given, turned(teacher, "distilled"), teacher, ranks())
    monkeypatch.setattr(stage.run, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    names = ("blocks.0.attn.qkv.weight", "blocks.1.attn.proj.weight", "final_layer.linear.weight")
    nets = (stage.denoiser, scores_of(stage).fake)
    before = [net.get_parameter(name).detach().clone() for net in nets for name in names]
    assert np.isfinite(losses(stage, 2)).all()
    after = [net.get_parameter(name) for net in nets for name in names]
    assert not any(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_fake_score_comes_to_know_what_the_student_makes(teacher: WorldModel, tmp_path: Path) -> None:
    given = settings(DistillTraining, tmp_path, real="given", every=1, rolled=2, critic_lr=3e-3, timesteps=(1000,))
    stage = DistillStage(given, turned(teacher, "distilled"), teacher, ranks())
    losses(stage, 1)
    (seen,) = stage._seen
    fake, level = scores_of(stage).fake, torch.full(seen.made.shape[:2], 800.0)
    level[:, 0] = 0
    noisy, chunks = noised(seen.made, level), score_chunks(teacher.config, 5)

    def error() -> float:
        with torch.no_grad():
            told = fake.predict_clean(noisy, level, stage.given(seen), chunks, blank_memory(fake, noisy))
        return float((told - seen.made).square().mean())

    before = error()
    for _ in range(30):
        stage._follow(seen)
    assert error() < 0.7 * before


def test_distillation_goes_on_with_its_fake_score(teacher: WorldModel, tmp_path: Path) -> None:
    given = settings(DistillTraining, tmp_path, real="given", every=1, max_steps=1, validation_scenes=1)
    first = DistillStage(given, turned(teacher, "distilled"), teacher, ranks())
    first.train()
    second = DistillStage(given, turned(teacher, "distilled"), teacher, ranks())
    assert second.run.step == 1
    for one, other in ((scores_of(first).fake, scores_of(second).fake), (first.denoiser, second.denoiser)):
        for name, x in one.state_dict().items():
            assert torch.equal(x, other.state_dict()[name]), name
    with pytest.raises(ConfigError, match=r"trained with scores, asked for is adversary and scores"):
        DistillStage(replace(given, adversary=1.0), turned(teacher, "distilled"), teacher, ranks())
    model = bundle.load(tmp_path / "bundle", device="cpu", precision="fp32")
    assert model.config.variant == "distilled" and model.config.timesteps == STEPS.timesteps
    other = WorldModel.random(teacher.config, seed=1)
    with pytest.raises(ConfigError, match="autoencoders differ"):
        DistillStage(given, turned(teacher, "distilled"), other, ranks())


def test_bundles_of_every_variant_are_judged(tiny_model: WorldModel, tmp_path: Path) -> None:
    for variant in ("bidirectional", "teacher"):
        told = turned(tiny_model, variant, **many_steps(STEPS))  # type: ignore[arg-type]
        bundle.save(tmp_path / variant, told, {}, bits=32)
        model = bundle.load(tmp_path / variant, device="cpu", precision="fp32")
        assert model.config == told.config
        report = evaluate(model, scenes=2, frames=8, returns=())
        assert np.isfinite(report["psnr_visible"]["8"])


def test_a_stage_without_what_it_needs_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start=FOLDER"):
        run_stage("rooms-ode", {"out": str(tmp_path), "device": "cpu", "smoke": True})
    distill = {"out": str(tmp_path), "device": "cpu", "smoke": True, "start": "rooms"}
    with pytest.raises(ConfigError, match=r"real is None and matching 1\.0; give the bundle"):
        run_stage("rooms-distill", distill)
    with pytest.raises(ConfigError, match="not both 0"):
        run_stage("rooms-distill", distill | {"matching": 0})
    with pytest.raises(ConfigError, match="do without it, real=null"):
        run_stage("rooms-distill", distill | {"matching": 0, "adversary": 1.0, "real": "rooms"})


def test_a_group_given_in_part_keeps_the_stages_own_values(tmp_path: Path) -> None:
    read = _read(TeacherTraining, {"out": tmp_path, "schedule": {"steps": 8}, "levels": {"shift": 3.0}}, {})
    assert read.schedule == Schedule(steps=8, shift=2.0, guidance=1.0)
    assert (read.levels.law, read.levels.shift) == ("logit_normal", 3.0)


def test_the_bundle_tells_the_stages_before_it(tiny_model: WorldModel, tmp_path: Path) -> None:
    given = settings(TeacherTraining, tmp_path, max_steps=1, validation_scenes=1)
    stage = DenoiserStage(
        given, turned(tiny_model, "teacher", **many_steps(STEPS)), ranks(), {"denoiser": [{"steps": 7}]}
    )
    stage.train()
    told = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["provenance"]["denoiser"]
    assert [row["steps"] for row in told] == [7, 1] and told[1]["settings"]["measure"] == "velocity"
