"""What is learned: flow matching, epsilon, v-prediction, next tokens."""

from typing import Annotated

from ..options import ByName
from .base import Objective
from .causal_lm import CausalLM
from .diffusion import Epsilon, FlowMatching, VPrediction

AnyObjective = Annotated[FlowMatching | Epsilon | VPrediction | CausalLM, ByName("flow_matching", Objective)]
"""What `objective` may be; a class of another package is one by `name: package.module:Class`."""
