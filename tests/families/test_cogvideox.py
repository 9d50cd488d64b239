"""CogVideoX's own: schedule, padding, noise on the given frame, sizes, learned positions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
from recorded import Case, certain_posteriors, run_of
from torch import Tensor

from omnitune import config
from omnitune.data import buckets
from omnitune.data.buckets import Buckets
from omnitune.data.sizes import Bucket
from omnitune.errors import UserError
from omnitune.export.weights import export
from omnitune.families.base import Noisy, Sampling
from omnitune.families.cogvideox import CogVideoX, CogVideoXOptions
from omnitune.model import load_with_adapters
from omnitune.objectives.diffusion import VPrediction
from omnitune.parallel.mesh import Mesh
from omnitune.random import Draw
from omnitune.resolve import ResolvedRun, resolve_run
from omnitune.testing.tiny import build_tiny
from omnitune.testing.training import start_training

Load = Callable[..., CogVideoX]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small pipeline of a variant."""
    built: dict[str, Path] = {}

    def find(variant: str) -> Path:
        if variant not in built:
            built[variant] = build_tiny(tmp_path_factory.mktemp("tiny"), "cogvideox", variant)
        return built[variant]

    return find


@pytest.fixture(scope="module")
def load(model: Callable[[str], Path]) -> Load:
    def load_variant(variant: str, dtype: torch.dtype = torch.float32, **options: Any) -> CogVideoX:
        chosen = CogVideoXOptions(**options) if options else None
        family = CogVideoX.load(str(model(variant)), "cpu", dtype, options=chosen)
        if family.takes:
            family.give_frames("first", optional=False, dropout=True)
        return family

    return load_variant


def draws(rows: int) -> Draw:
    return Draw(3, list(range(rows)))


def clip(rows: int, frames: int, seed: int = 1) -> Tensor:
    """Pixels (B, 3, T, 64, 64) in [-1, 1], of 8-bit levels."""
    chance = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (rows, 3, frames, 8, 8), generator=chance)
    return (levels.float() / 255 * 2 - 1).repeat_interleave(8, 3).repeat_interleave(8, 4)


def batch_of(family: CogVideoX, captions: list[str], frames: int = 17) -> dict[str, Any]:
    """What the family's stages make of clips and captions, with rows as `denoise` and the loss read them."""
    pixels, draw = clip(len(captions), frames), draws(len(captions))
    batch: dict[str, Any] = {"pixels": pixels, "first_frame": pixels[:, :, :1], "caption": captions}
    with torch.no_grad(), certain_posteriors():
        for stage in family.stages:
            batch.update(stage.run(batch, draw))
    return {**batch, "row_weight": torch.ones(len(captions))}


# The schedule


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_noise_and_target_at_every_level_are_those_of_the_checkpoints_scheduler(
    load: Load, variant: str
) -> None:
    family, objective, scheduler = load(variant), VPrediction(), load(variant).scheduler()
    steps = torch.arange(1000)
    x0, noise = torch.randn(2, 1000, 4, generator=torch.Generator().manual_seed(0))
    noisy = objective.noised(family, Noisy({"x": x0}, {"x": noise}, (steps + 0.5) / 1000))
    assert torch.equal(noisy.fed, steps)
    assert torch.equal(objective.path(family, torch.tensor([0.0, 1 - 2**-24]), {})[2], steps[[0, -1]])
    torch.testing.assert_close(noisy.x["x"], scheduler.add_noise(x0, noise, steps), atol=1e-6, rtol=1e-5)
    wanted = scheduler.get_velocity(x0, noise, steps)
    torch.testing.assert_close(noisy.target["x"], wanted, atol=1e-6, rtol=1e-5)
    assert torch.equal(noisy.x["x"][-1], noise[-1])  # the last level is noise alone
    assert family.alphas_cumprod is not None
    assert scheduler.config.snr_shift_scale == (3.0 if variant == "2b" else 1.0)


# Latents


@pytest.mark.parametrize("variant", ["2b", "5b", "1.5-5b"])
def test_the_pipeline_decodes_x0_to_what_the_autoencoder_gave(load: Load, variant: str) -> None:
    family, decoded = load(variant), list[Tensor]()
    batch = batch_of(family, ["rocket"])
    pipe = family.pipeline()
    padding = 1 if variant.startswith("1.5") else 0
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        decode = pipe.vae.decode
        patch.setattr(pipe.vae, "decode", lambda z: decoded.append(z) or decode(z))
        pipe.decode_latents(batch["x0"]["x"].transpose(1, 2)[:, padding:])
    torch.testing.assert_close(decoded[0], batch["moments"].chunk(2, 1)[0], atol=1e-5, rtol=1e-5)


def test_an_odd_number_of_latent_frames_gets_a_copy_of_the_first_and_an_even_one_none(load: Load) -> None:
    family = load("1.5-5b")
    moments = torch.randn(2, 32, 5, 2, 2)
    made = family.draw_latents({"moments": moments}, draws(2))
    x0 = made["x0"]["x"]
    assert x0.shape[2] == 6
    assert torch.equal(x0[:, :, 0], x0[:, :, 1])
    assert made["mask"].shape == (2, 1, 6, 1, 1)
    assert made["mask"][0].flatten().tolist() == [0, 1, 1, 1, 1, 1]
    even = family.draw_latents({"moments": moments[:, :, :4]}, draws(2))
    assert even["x0"]["x"].shape[2] == 4
    assert "mask" not in even
    assert load("5b").draw_latents({"moments": moments}, draws(2))["x0"]["x"].shape[2] == 5


def test_padded_frames_do_not_count(load: Load) -> None:
    family, objective = load("1.5-5b"), VPrediction()
    batch = batch_of(family, ["rocket", "tornado"])

    def all_but_padding(noisy: Noisy, batch: Any) -> dict[str, Tensor]:
        guess = noisy.target["x"].clone()
        guess[:, :, 0] += 100
        guess[:, :, -1] += 1
        return {"x": guess}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "denoise", all_but_padding)
        loss = objective.loss(family, batch, draws(2)).totals["samples"]
    assert float(loss) == pytest.approx(2 / 5, rel=1e-5)  # one of five frames is off by one


def test_frame_counts_within_the_limits_are_those_that_the_autoencoder_gives_back(load: Load) -> None:
    family = load("5b")
    for frames in (1, 5, 9, 13, 17):
        with torch.no_grad():
            latents = family.posterior(clip(1, frames)).mode()
        assert latents.shape[2] == (frames - 1) // 4 + 1
        with torch.no_grad():
            back = family.components["vae"].decode(latents).sample.shape[2]
        legal = buckets.nearest_frames(frames, family.limits) == frames
        assert (back == frames) == legal, (frames, back)


# Text


def test_a_batch_of_unequal_captions_equals_batches_of_one(load: Load) -> None:
    family = load("1.5-5b-i2v")
    captions = ["rocket", "an airplane flies over the sea, seen from below, and a cat"]
    batch = batch_of(family, captions)
    noise = torch.randn(batch["x0"]["x"].shape, generator=torch.Generator().manual_seed(2))
    everyone = torch.ones(2, dtype=torch.bool)

    def denoised(rows: slice) -> Tensor:
        mine = {name: value[rows] for name, value in batch.items() if name != "x0"}
        if rows != slice(None):
            text = family.encode_text({"caption": captions[rows]}, draws(1))["prompt_embeds"]
            torch.testing.assert_close(text, mine["prompt_embeds"], atol=1e-5, rtol=1e-5)
        noisy = Noisy({"x": batch["x0"]["x"][rows]}, {"x": noise[rows]}, torch.tensor([0.3, 0.8])[rows])
        noisy = family.with_frames(noisy, mine, everyone[rows], everyone[rows])
        return family.denoise(VPrediction().noised(family, noisy), mine)["x"]

    with torch.no_grad():
        together, alone = denoised(slice(None)), [denoised(slice(i, i + 1)) for i in range(2)]
    assert together.shape == batch["x0"]["x"].shape
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_text_has_the_length_that_positions_were_made_for(load: Load) -> None:
    assert load("1.5-5b", text_length=224).encode_text({"caption": ["rocket"]}, draws(1))[
        "prompt_embeds"
    ].shape == (1, 224, 32)
    for variant in ("2b", "5b-i2v"):
        with pytest.raises(UserError, match=r"text_length: 224, but .* positions for 226 tokens"):
            load(variant, text_length=224)


# Given frames


def test_a_given_frame_carries_noise_of_log_normal_strength_one_for_each_sample(load: Load) -> None:
    family, seen, rows = load("5b-i2v"), list[Tensor](), 500
    picture = clip(rows, 1)

    def remember(pixels: Tensor) -> Any:
        seen.append(pixels)
        return SimpleNamespace(parameters=torch.zeros(rows, 32, 1, 1, 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "posterior", remember)
        drawn = family.encode_picture(family.keep_picture({"first_frame": picture}, draws(rows)), draws(rows))
    assert float(drawn["image_latents"].std()) == pytest.approx(0.7, abs=0.02)  # the posterior is drawn from
    noise = seen[0] - picture  # (B, 3, 1, 64, 64)
    logs = noise.flatten(1).std(1).log()
    assert float(logs.mean()) == pytest.approx(-3, abs=0.07)
    assert float(logs.std()) == pytest.approx(0.5, abs=0.05)
    unit = noise / logs.exp().view(-1, 1, 1, 1, 1)
    assert float((unit**4).mean()) == pytest.approx(3, abs=0.02)  # normal, of one strength within a sample


def test_the_levels_of_a_given_frame_are_cached_and_its_noise_is_live(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    run = run_of(Case("cogvideox", "1.5-5b-i2v", "first"), model("1.5-5b-i2v"), tmp_path)
    job = resolve_run(config.validate(config.read(run)))
    assert [s.name for s in job.cached] == ["moments", "text", "picture"]
    assert [s.name for s in job.live] == ["latents", "image"]
    assert not {"pixels", "first_frame"} & {need for stage in job.live for need in stage.needs}
    assert job.train_components == ["transformer", "vae"]


@pytest.mark.parametrize(("variant", "scale"), [("5b-i2v", 0.7), ("1.5-5b-i2v", 1 / 0.7)])
def test_image_latents_stand_at_the_first_frame_and_dropout_makes_them_zero(
    load: Load, variant: str, scale: float
) -> None:
    family = load(variant, image_noise=False)
    batch = batch_of(family, ["rocket", "rocket"])
    noisy = Noisy(batch["x0"], {}, torch.tensor([0.5, 0.5]))
    channels = family.with_frames(
        noisy, batch, torch.tensor([True, True]), torch.tensor([True, False])
    ).extra["channels"]
    assert channels.shape == batch["x0"]["x"].shape
    assert int(channels[1].count_nonzero()) == int(channels[:, :, 1:].count_nonzero()) == 0
    with torch.no_grad():
        z = family.posterior(batch["first_frame"][:1]).mode()
    torch.testing.assert_close(channels[:1, :, :1], z * scale, atol=1e-5, rtol=1e-5)


def test_an_image_to_video_checkpoint_is_always_given_a_first_frame(load: Load) -> None:
    family = load("5b-i2v")
    assert family.limits.least_frames == 9
    for frames, optional, message in [("both", False, "it takes first"), ("first", True, "always given")]:
        with pytest.raises(UserError, match=message):
            family.give_frames(frames, optional=optional, dropout=False)
    with pytest.raises(UserError, match="given no frames"):
        load("5b").give_frames("first", optional=False, dropout=False)


@pytest.mark.parametrize(
    ("variant", "frames"), [("2b", 9), ("5b", 1), ("1.5-5b", 1), ("1.5-5b", 9), ("1.5-5b-i2v", 9)]
)
def test_the_published_pipeline_samples_in_bfloat16(load: Load, variant: str, frames: int) -> None:
    family = load(variant, torch.bfloat16)
    frame = ((clip(1, 1)[0, :, 0] + 1) * 127.5).byte().permute(1, 2, 0).numpy()
    given = {"first_frame": frame} if family.takes else {}
    made = family.sample([Sampling("rocket", "", Bucket(frames, 64, 64), 2, 2.0, 0, 8.0, given)])
    assert made[0].shape == (frames, 64, 64, 3)


# Sizes


def test_sizes_of_1_5_end_where_its_positions_end(load: Load) -> None:
    limits = load("1.5-5b").limits
    assert limits.largest == (96, 80)
    with pytest.raises(UserError, match=r"up to 96x80; the nearest is 96x80"):
        buckets.resolve(Buckets(frames=[9], sizes=["112x96"]), limits)
    found = buckets.resolve(Buckets(frames=[9], area="96x80"), limits)
    assert Bucket(9, 96, 80) in found
    assert all(bucket.height <= 96 and bucket.width <= 80 for bucket in found)
    assert load("5b").limits.largest is None


@dataclass
class Resized:
    job: ResolvedRun
    family: Any
    weights: Path
    notes: list[str]


@pytest.fixture(scope="module")
def resized(model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Resized:
    """A full fine-tune of the model with learned positions, at another size and frame count than its own."""
    folder = tmp_path_factory.mktemp("resized")
    path = run_of(Case("cogvideox", "5b-i2v", "first"), model("5b-i2v"), folder)
    described = config.read(path, ["data.buckets.frames=[9]", "data.buckets.sizes=[48x80]", "trainable=full"])
    ready = start_training(config.validate(described), folder)
    job, mesh, index, trainer, family = ready.resolved, ready.mesh, ready.index, ready.trainer, ready.family
    trainer.train_step(next(trainer.read()))
    export(family, job.claims, mesh, folder / "weights")
    return Resized(job, family, folder / "weights", list(index.notes))


def test_learned_positions_are_interpolated_and_the_plain_pipeline_runs_at_that_size(
    resized: Resized, model: Callable[[str], Path]
) -> None:
    assert [note for note in resized.notes if "interpolated from 17x64x64 to 9x48x80" in note]
    assert resized.job.shape.check_weights(list(resized.job.shape.components)) == []  # the files as they are
    live = resized.family.components["transformer"]
    saved: Any = CogVideoXTransformer3DModel.from_pretrained(resized.weights / "transformer")
    sizes = saved.config.sample_frames, saved.config.sample_height, saved.config.sample_width
    assert sizes == (9, 6, 10)
    assert saved.patch_embed.pos_embedding.shape == (1, 226 + 3 * 3 * 5, 32)
    assert torch.equal(saved.patch_embed.pos_embedding, live.patch_embed.pos_embedding)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), live.parameters(), strict=True))
    pipe: Any = CogVideoXImageToVideoPipeline.from_pretrained(model("5b-i2v"), transformer=saved)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        image=torch.rand(1, 3, 48, 80),
        prompt="rocket",
        num_frames=9,
        guidance_scale=1,
        num_inference_steps=1,
        output_type="np",
    ).frames
    assert made.shape == (1, 9, 48, 80, 3)


def test_interpolation_keeps_positions_of_text_and_what_is_linear(load: Load) -> None:
    family = load("5b-i2v")
    embed: Any = family.components["transformer"].patch_embed
    before = embed.pos_embedding.clone()
    t, y, x = torch.meshgrid(torch.arange(5.0), torch.arange(4.0), torch.arange(4.0), indexing="ij")
    embed.pos_embedding[0, 226:, :3] = torch.stack([t, y, x], -1).flatten(0, 2)
    family.fit_sizes([Bucket(17, 64, 128)])
    after = embed.pos_embedding
    assert torch.equal(after[:, :226], before[:, :226])
    grid = after[0, 226:].view(5, 4, 8, 32)
    assert torch.equal(grid[..., 0], torch.arange(5.0).view(5, 1, 1).expand(5, 4, 8))
    assert torch.equal(grid[..., 1], torch.arange(4.0).view(4, 1).expand(5, 4, 8))
    torch.testing.assert_close(grid[0, 0, 1:-1, 2], torch.arange(0.25, 3, 0.5))
    assert load("5b-i2v").fit_sizes([Bucket(17, 64, 64)]) == []


def test_learned_positions_are_of_one_size_alone(model: Callable[[str], Path], tmp_path: Path) -> None:
    path = run_of(Case("cogvideox", "5b-i2v", "first"), model("5b-i2v"), tmp_path)

    def mistake(*words: str) -> str:
        with pytest.raises(UserError) as caught:
            resolve_run(config.validate(config.read(path, words)))
        return str(caught.value)

    assert mistake("data.buckets.frames=[9, 17]") == (
        "data.buckets: 2 sizes, but this model's positions are learned, of one size alone; give one, as "
        "frames: [17], sizes: [64x64]"
    )
    assert mistake("validation.size=9x64x64") == (
        "validation.size: 9x64x64, but this run's positions are of 17x64x64; use that"
    )


def test_a_lora_keeps_its_alpha_in_the_published_pipeline(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    path = run_of(Case("cogvideox", "2b", None), model("2b"), tmp_path)
    run = config.validate(config.read(path, ["trainable.lora={rank: 4, alpha: 10}"]))
    job, mesh = resolve_run(run), Mesh(run.parallel)
    family, _ = load_with_adapters(job, "cpu")
    for name, parameter in family.components.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    export(family, job.claims, mesh, tmp_path / "weights")
    pipe: Any = family.pipeline_type.from_pretrained(model("2b"))
    pipe.load_lora_weights(tmp_path / "weights")
    chance = torch.Generator().manual_seed(4)
    given = {
        "hidden_states": torch.randn(1, 3, 16, 8, 8, generator=chance),
        "encoder_hidden_states": torch.randn(1, 226, 32, generator=chance),
        "timestep": torch.tensor([500]),
    }
    with torch.no_grad():
        ours, theirs = (
            transformer.eval()(**given).sample
            for transformer in (family.components["transformer"], pipe.transformer)
        )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert len([n for n, _ in family.components.named_parameters() if ".lora_A." in n]) == 2 * 4
