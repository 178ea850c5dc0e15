"""Where transitions wait to be learnt from: uniform or prioritized sampling, n-step, each observation stored once."""

from rl_runner.replay.last import LastReplay
from rl_runner.replay.layout import bytes_per_transition, check_memory
from rl_runner.replay.prioritized import PrioritizedReplay
from rl_runner.replay.ring import Batch
from rl_runner.replay.uniform import UniformReplay

__all__ = ["Batch", "LastReplay", "PrioritizedReplay", "UniformReplay", "bytes_per_transition", "check_memory"]
