"""What every family's denoiser is fed in training is what its published pipeline feeds it."""

import pytest
import torch
from recorded import Both, Case, cases, record
from torch import Tensor


@pytest.fixture(scope="module", params=list(cases()), ids=str)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Both]:
    case: Case = request.param
    return record(case, tmp_path_factory.mktemp("both"))


def test_training_feeds_the_denoiser_what_the_pipeline_feeds_it(both: list[Both]) -> None:
    for one in both:
        assert one.experts[0] == one.experts[1]
        assert one.trained.keys() == one.published.keys()
        for name, told in one.published.items():
            asked = one.trained[name]
            if not isinstance(told, Tensor):
                assert asked == told, name
                continue
            assert asked.shape == told.shape, name
            torch.testing.assert_close(asked.double(), told.double(), atol=1e-5, rtol=1e-5, msg=name)
