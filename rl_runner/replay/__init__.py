"""Where transitions wait to be learnt from: uniform or prioritized sampling, n-step, each observation stored once."""

from rl_runner.replay.prioritized import PrioritizedReplay
from rl_runner.replay.ring import Batch
from rl_runner.replay.uniform import LastReplay, UniformReplay, check_memory

__all__ = ["Batch", "LastReplay", "PrioritizedReplay", "UniformReplay", "check_memory"]
