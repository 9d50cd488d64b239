"""The hardest customers of a condition: a second stream in and out, and guidance of a condition's own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnitune.batch import Batch, Streams
from omnitune.conditions.base import Condition
from omnitune.data.sizes import Bucket
from omnitune.families.base import Noisy
from omnitune.families.wan import Wan
from omnitune.objectives.diffusion import FlowMatching
from omnitune.random import Draw
from omnitune.sampling import Sampling
from omnitune.stages import Stage

SHAPE = (2, 16, 3, 4, 4)
W2 = 3.0


class Motion(Condition):
    """VideoJAM in short: the network sees and predicts motion beside appearance.

    Motion is the difference of latent frames here, where the paper has optical flow.
    """

    name = "motion"

    def prepare(self, family: Any) -> None:
        family.widen(16, 16)

    def stages(self, family: Any) -> list[Stage]:
        def encode(batch: Batch, draw: Draw) -> Batch:
            return {"motion": batch["pixels"].diff(dim=2, prepend=batch["pixels"][:, :, :1])}

        return [Stage("motion", (), ("pixels",), ("motion",), encode)]

    def before(self, family: Any, noisy: Noisy, batch: Batch, draw: Draw) -> Noisy:
        kept = draw.uniform("motion_dropout") >= 0.2
        noisy.x0["motion"] = batch["motion"] * kept.view(-1, 1, 1, 1, 1)
        noisy.noise["motion"] = draw.normal("noise.motion", batch["motion"].shape[1:])
        return noisy

    def around(
        self, predict: Callable[[], Streams], family: Any, noisy: Noisy, batch: Batch, draw: Draw
    ) -> Streams:
        noisy.add_channels(noisy.x["motion"])
        streams = predict()
        return {"x": streams["x"], "motion": streams["further"]}

    def sampling(self, family: Any, request: Sampling) -> Sampling:
        def guided(forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(hidden_states: Tensor, **rest: Any) -> tuple[Tensor]:
                still = torch.cat([hidden_states[:, :16], torch.zeros_like(hidden_states[:, 16:])], dim=1)
                (joint,), (alone,) = (forward(hidden_states=x, **rest) for x in (hidden_states, still))
                return ((1 + W2) * joint - W2 * alone,)

            return call

        return replace(request, wrappers=[*request.wrappers, guided])

    def exports(self, family: Any) -> Mapping[str, Any]:
        return {"channels": 16}


@pytest.fixture
def family(tiny_wan: Path) -> Wan:
    return Wan.load(str(tiny_wan), "cpu", torch.float32, only=["transformer"])


def batch() -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    x0, motion = (torch.randn(SHAPE, generator=random) for _ in range(2))
    text = [torch.randn(4, 32, generator=random) for _ in range(2)]
    return {"x0": {"x": x0}, "motion": motion, "prompt_embeds": text, "row_weight": torch.ones(2)}


def test_a_second_stream_is_noised_predicted_and_scored(family: Wan) -> None:
    objective, draw = FlowMatching(), Draw(0, [5, 6])
    with torch.no_grad():
        base = objective.loss(family, batch(), draw).totals["samples"]
        family.add_condition(Motion())
        seen = []
        denoise = family.denoise
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(family, "denoise", lambda n, b: seen.append(n) or denoise(n, b))
            joint = objective.loss(family, batch(), draw, family.conditions).totals["samples"]
    (noisy,) = seen
    motion = (noisy.noise["motion"] - noisy.x0["motion"]).pow(2).flatten(1).mean(1)  # predicted as 0
    torch.testing.assert_close(joint, base + motion.sum())
    u = noisy.u.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(noisy.x["motion"], (1 - u) * noisy.x0["motion"] + u * noisy.noise["motion"])


def test_guidance_of_a_condition_surrounds_every_call_of_the_core(family: Wan) -> None:
    family.add_condition(Motion())
    core: Any = family.components["transformer"]
    torch.manual_seed(0)
    for layer in (core.patch_embedding, core.proj_out):  # as after training
        layer.weight.data.normal_(std=0.1)
    x, text, fed = torch.randn(1, 32, 3, 4, 4), torch.randn(1, 512, 32), torch.tensor([500.0])
    request = family.conditioned(Sampling("", "", Bucket(9, 32, 32), 1, 1.0, 0))
    with torch.no_grad():

        def call(hidden_states: Tensor) -> Tensor:
            answer: Tensor = core(hidden_states, fed, text, return_dict=False)[0]
            return answer

        still = torch.cat([x[:, :16], torch.zeros_like(x[:, 16:])], dim=1)
        expected, plain = 4 * call(x) - 3 * call(still), call(x)
        with family.wrapped(request):
            guided = core(hidden_states=x, timestep=fed, encoder_hidden_states=text, return_dict=False)[0]
        torch.testing.assert_close(guided, expected)
        assert torch.equal(call(x), plain), "behind the sample nothing is changed"


def test_a_condition_adds_its_stages_and_notes_to_the_familys_own(family: Wan) -> None:
    own = [stage.name for stage in family.stages]
    family.add_condition(Motion())
    assert [stage.name for stage in family.stages] == [*own, "motion"]
    assert family.export_notes == {"motion": '{"channels": 16}'}
