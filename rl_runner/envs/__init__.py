"""Gymnasium's environments as tensors: what an agent may know of them, vector steps, and their exact continuation."""

from rl_runner.envs.spaces import Spec, make, spec_of
from rl_runner.envs.vector import EVAL_LIMIT, Envs, Step

__all__ = ["EVAL_LIMIT", "Envs", "Spec", "Step", "make", "spec_of"]
