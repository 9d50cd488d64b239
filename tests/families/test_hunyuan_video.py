"""HunyuanVideo's prompts, with a picture in them and without, and its given first frame."""

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline
from PIL import Image
from recorded import Case, run_of
from torch import Tensor

from omnitune import config
from omnitune.conditions.frames import FrameConditioning
from omnitune.data.sizes import Bucket
from omnitune.errors import UserError
from omnitune.families.base import Noisy
from omnitune.families.hunyuan_video import HunyuanVideo, HunyuanVideoOptions
from omnitune.objectives.diffusion import FlowMatching
from omnitune.parallel.mesh import Mesh
from omnitune.random import Draw
from omnitune.resolve import resolve_run
from omnitune.sampling import Sampling
from omnitune.testing.runs import write_run
from omnitune.testing.tiny import build_tiny

KEPT = 12
"""Text length here, so that one of the captions is cut."""
CAPTIONS = (
    "rocket",
    "two boats on a lake, a fox runs through snow, smiling face with sunglasses, a red apple",
)
IMAGE_TO_VIDEO = ("i2v", "i2v-33ch")

Load = Callable[..., HunyuanVideo]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hunyuan")
    return {name: build_tiny(folder / name, "hunyuan_video", name) for name in HunyuanVideo.variants}


@pytest.fixture(scope="module")
def load(models: dict[str, Path]) -> Load:
    def load(variant: str, dtype: torch.dtype = torch.float32, dropout: bool = False, **options: Any) -> Any:
        family = HunyuanVideo.load(
            str(models[variant]),
            "cpu",
            dtype,
            options=HunyuanVideoOptions(**{"text_length": KEPT, **options}),
        )
        if family.takes:
            family.add_condition(FrameConditioning(dropout=0.5 if dropout else 0.0))
        return family

    return load


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Two first frames, (2, 3, 1, 32, 32), in the levels of pictures."""
    levels = torch.randint(0, 256, (2, 3, 1, 32, 32), generator=torch.Generator().manual_seed(3))
    return levels / 127.5 - 1


def as_picture(frame: Tensor) -> Image.Image:
    return Image.fromarray(((frame[:, 0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())


def published(model: Path, caption: str, picture: Any = None, interleave: int = 2) -> tuple[Tensor, Tensor]:
    """A prompt as the published pipeline encodes it alone: embeddings (N, D) and their mask (N,)."""
    if picture is None:
        pipe: Any = HunyuanVideoPipeline.from_pretrained(model)
        embeds, _, mask = pipe.encode_prompt(caption, max_sequence_length=KEPT)
    else:
        pipe = HunyuanVideoImageToVideoPipeline.from_pretrained(model)
        embeds, _, mask = pipe.encode_prompt(
            picture, caption, max_sequence_length=KEPT, image_embed_interleave=interleave
        )
    return embeds[0].detach(), mask[0]


@pytest.mark.parametrize(("variant", "interleave"), [("t2v", None), ("i2v", 4), ("i2v-33ch", 2)])
def test_a_batch_of_prompts_equals_each_prompt_alone_in_the_pipeline(
    models: dict[str, Path], load: Load, frames: Tensor, variant: str, interleave: int | None
) -> None:
    family = load(variant)
    batch = {"caption": list(CAPTIONS), "first_frame": frames}
    with torch.no_grad():
        ours = family.encode_text(batch, Draw(0, [0, 1]))["prompt_embeds"]
    for i, caption in enumerate(CAPTIONS):
        picture = (as_picture(frames[i]), interleave) if interleave else ()
        embeds, mask = published(models[variant], caption, *picture)
        assert len(embeds) == family.prompt_tokens
        torch.testing.assert_close(ours[i], embeds[mask.bool()], atol=1e-5, rtol=0)
    assert len(ours[0]) < len(ours[1]) == family.prompt_tokens, "the longer caption is cut"


@pytest.mark.parametrize("variant", ["t2v", "i2v"])
def test_captions_are_told_as_cut_once_their_last_token_changes_nothing(
    load: Load, frames: Tensor, variant: str
) -> None:
    family = load(variant)
    assert len(family.tokenizer("1112", add_special_tokens=False).input_ids) == 4, "one token a digit"

    def read(captions: list[str]) -> bool:
        batch = {"caption": captions, "first_frame": frames[:1].expand(2, -1, -1, -1, -1)}
        with torch.no_grad():
            first, second = family.encode_text(batch, Draw(0, [0, 1]))["prompt_embeds"]
        return len(first) != len(second) or not torch.equal(first, second)

    for repeats in range(1, KEPT + 2):
        captions = ["1" * repeats + last for last in "12"]
        cut = family.cut_captions(captions)
        assert cut == ([] if read(captions) else [0, 1]), repeats
    assert cut == [0, 1]


@pytest.mark.parametrize("variant", HunyuanVideo.variants)
def test_what_lies_behind_a_prompt_changes_nothing(
    models: dict[str, Path], load: Load, frames: Tensor, variant: str
) -> None:
    """The pipeline has embeddings of padding there and a mask, training zeros and the same mask."""
    family = load(variant)
    asked: list[dict[str, Any]] = []
    core: Any = family.components["transformer"]
    core.register_forward_pre_hook(lambda _, args, kwargs: asked.append(kwargs), with_kwargs=True)
    batch = {"caption": ["rocket"], "first_frame": frames[:1]}
    draw = Draw(0, [0])
    noisy = noised(family, batch, frames[:1])
    with torch.no_grad():
        batch |= family.encode_text(batch, draw) | family.pooled_stage("text_encoder_2").run(batch, draw)
        ours = family.denoise(noisy, batch)["x"]
        picture = (as_picture(frames[0]), 4 if variant == "i2v" else 2) if family.condition else ()
        embeds, mask = published(models[variant], "rocket", *picture)
        theirs = core(
            **{**asked[0], "encoder_hidden_states": embeds[None], "encoder_attention_mask": mask[None]}
        )[0]
    hidden = embeds[~mask.bool()]
    assert len(hidden) > 2
    assert (hidden != 0).all()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def noised(family: HunyuanVideo, batch: dict[str, Any], frames: Tensor) -> Noisy:
    """Clips of 9 frames at u = 0.7, given their frames where the family takes any."""
    random = torch.Generator().manual_seed(4)
    x0, noise = (torch.randn(len(frames), 16, 3, 4, 4, generator=random) for _ in range(2))
    noisy = Noisy({"x": x0}, {"x": noise}, torch.full((len(frames),), 0.7))
    if family.condition:
        with torch.no_grad():
            batch |= family.encode_frames({"first_frame": frames}, Draw(0, [0]))
        every = torch.ones(len(frames), dtype=torch.bool)
        noisy = family.with_frames(noisy, batch, "first", every, every)
    return FlowMatching().noised(family, noisy)


def test_token_replace_has_the_picture_in_frame_0_and_no_loss_there(
    models: dict[str, Path], load: Load, frames: Tensor
) -> None:
    family = load("i2v")
    noisy = noised(family, {}, frames)
    vae: Any = HunyuanVideoImageToVideoPipeline.from_pretrained(models["i2v"]).vae
    with torch.no_grad():
        alone = vae.encode(frames).latent_dist.mode() * 0.476986
        clip = torch.cat([frames, *[-frames] * 8], dim=2)
        within = vae.encode(clip).latent_dist.mode()[:, :, :1] * 0.476986
    torch.testing.assert_close(noisy.x["x"][:, :, :1], alone, atol=1e-6, rtol=0)
    assert (alone - within).abs().max() > 1e-3, "this autoencoder is not causal"
    prediction = {"x": noisy.target["x"].clone()}
    prediction["x"][:, :, 0] += 5
    assert FlowMatching().row_losses(noisy, prediction).tolist() == [0, 0]
    prediction["x"][:, :, 1] += 1
    torch.testing.assert_close(FlowMatching().row_losses(noisy, prediction), torch.full((2,), 0.5))


def test_latent_concat_learns_from_every_frame(load: Load, frames: Tensor) -> None:
    noisy = noised(load("i2v-33ch"), {}, frames)
    assert noisy.mask is None
    assert noisy.u.shape == (2,)
    assert noisy.extra["channels"].shape == (2, 17, 3, 4, 4)


@pytest.mark.parametrize("variant", IMAGE_TO_VIDEO)
def test_dropped_pictures_turn_black_in_the_prompt_alone(
    models: dict[str, Path], load: Load, frames: Tensor, variant: str
) -> None:
    family = load(variant, dropout=True)
    batch: dict[str, Any] = {"caption": ["rocket", "rocket"], "first_frame": frames}
    draw = Draw(0, [0, 1])
    with torch.no_grad():
        for stage in family.stages:
            if stage.name in ("text", "text_black", "condition"):
                batch |= stage.run(batch, draw)
    noisy = Noisy({"x": torch.zeros(2, 16, 3, 4, 4)}, {}, torch.full((2,), 0.5))
    given, kept = torch.tensor([True, True]), torch.tensor([True, False])
    noisy = family.with_frames(noisy, batch, "first", given, kept)
    black = Image.new("RGB", (32, 32), 0)
    embeds, mask = published(models[variant], "rocket", black, 4 if variant == "i2v" else 2)
    torch.testing.assert_close(noisy.extra["prompt_embeds"][0], batch["prompt_embeds"][0])
    torch.testing.assert_close(noisy.extra["prompt_embeds"][1], embeds[mask.bool()], atol=1e-5, rtol=0)
    given = noisy.x0["x"][:, :, :1] if variant == "i2v" else noisy.extra["channels"][:, :16, :1]
    torch.testing.assert_close(given, batch["image_latents"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guidance_is_fed_times_1000_as_the_pipeline_rounds_it(
    load: Load, frames: Tensor, dtype: torch.dtype
) -> None:
    family, fed = load("i2v", dtype), []
    core: Any = family.components["transformer"]
    core.register_forward_pre_hook(lambda _, args, kwargs: fed.append(kwargs), with_kwargs=True)
    batch: dict[str, Any] = {"prompt_embeds": [torch.zeros(9, 16)] * 2, "pooled_embeds": torch.zeros(2, 24)}
    with torch.no_grad():
        family.denoise(noised(family, batch, frames), batch)
    assert torch.equal(fed[0]["guidance"], torch.tensor([6.0] * 2, dtype=dtype) * 1000.0)
    assert fed[0]["guidance"].dtype == fed[0]["pooled_projections"].dtype == dtype
    assert fed[0]["timestep"].dtype == torch.float32
    torch.testing.assert_close(fed[0]["timestep"], torch.full((2,), 700.0))


def test_defaults_are_those_of_the_published_pipelines() -> None:
    for pipe in (HunyuanVideoPipeline, HunyuanVideoImageToVideoPipeline):
        taken = signature(pipe.__call__).parameters
        assert taken["max_sequence_length"].default == HunyuanVideoOptions().text_length
    taken = signature(HunyuanVideoPipeline.__call__).parameters
    stated = HunyuanVideo.checkpoint().defaults.guidance
    assert taken["guidance_scale"].default == HunyuanVideoOptions().guidance == stated


@pytest.mark.parametrize("variant", IMAGE_TO_VIDEO)
def test_the_cache_keeps_an_empty_prompt_for_each_picture(
    models: dict[str, Path], tmp_path: Path, variant: str
) -> None:
    file = run_of(Case("hunyuan_video", variant, "first"), models[variant], tmp_path)
    clips = tmp_path / "clips"
    for i in range(2):
        Image.new("RGB", (64, 64), (255 * i, 9, 9)).save(clips / f"{i}.png")
    lists = {"prompts": ["rocket", "rocket"], "videos": ["0.mkv", "1.mkv"], "images": ["0.png", "1.png"]}
    for name, lines in lists.items():
        (clips / f"{name}.txt").write_text("\n".join(lines) + "\n")
    described = json.loads(file.read_text())
    described["data"]["sources"] = [{"name": "line_lists", "path": str(clips)}]
    described["conditions"] = [
        {"name": "frame_conditioning", "dropout": 0.5}, {"name": "caption_dropout", "probability": 0.5},
    ]  # fmt: skip
    run = config.validate(config.read(write_run(file, described)))
    job, mesh = resolve_run(run), Mesh(run.parallel)
    filled = job.fill_cache(job.index(), job.open_cache(), mesh)
    assert filled.encoded == {"moments": 2, "text": 4, "pooled": 2, "text_black": 2, "condition": 2}
    assert job.fill_cache(job.index(), job.open_cache(), mesh).complete


def test_text_that_one_checkpoint_cached_is_not_the_other_s(load: Load) -> None:
    kept, mixed = (load(variant).text_stages()[0].options for variant in IMAGE_TO_VIDEO)
    assert kept != mixed
    assert kept["text_length"] == KEPT


def test_the_image_processor_decides_what_the_text_encoder_computes(load: Load) -> None:
    named = [path.name for path in load("i2v").weight_files("text_encoder")]
    assert {"preprocessor_config.json", "tokenizer.json", "config.json"} <= set(named)
    assert "preprocessor_config.json" not in [p.name for p in load("t2v").weight_files("text_encoder")]


@pytest.mark.parametrize("variant", HunyuanVideo.variants)
def test_every_block_is_sharded(load: Load, variant: str) -> None:
    assert len(load(variant).blocks("transformer")) == 4


def test_guidance_of_a_checkpoint_that_is_told_none_takes_a_second_call(load: Load) -> None:
    wanted = Sampling("a", "", Bucket(9, 32, 32), steps=2, guidance=2.5, seed=0)
    assert load("i2v").call(wanted)["guidance_scale"] == 2.5
    assert "true_cfg_scale" not in load("i2v").call(wanted)
    assert load("i2v-33ch").call(wanted)["true_cfg_scale"] == 2.5
    with pytest.raises(UserError, match=r"guidance: 2.5 has no effect"):
        load("i2v-33ch", guidance=2.5)


@pytest.mark.parametrize("variant", IMAGE_TO_VIDEO)
def test_image_to_video_checkpoints_want_their_frame(models: dict[str, Path], variant: str) -> None:
    family = HunyuanVideo.load(str(models[variant]), "meta", torch.float32)
    assert "add {name: frame_conditioning, frames: first}" in (family.missing_condition() or "")
    for condition, message in (
        (FrameConditioning(frames="both"), "takes first"),
        (FrameConditioning(probability=0.5), "always given"),
    ):
        with pytest.raises(UserError, match=message):
            family.add_condition(condition)


@pytest.mark.parametrize("variant", HunyuanVideo.variants)
def test_files_that_name_tensors_as_older_layouts_do_are_whole(models: dict[str, Path], variant: str) -> None:
    family = HunyuanVideo.load(str(models[variant]), "meta", torch.float32)
    assert family.check_weights(family.parts) == []
