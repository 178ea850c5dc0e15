"""What the runner asks of an agent and of a replay; whoever brings their own fulfils these."""

from typing import Any, Protocol

from torch import Tensor

from rl_runner.replay.ring import Batch

Metrics = dict[str, Tensor]


class Agent(Protocol):
    """A behaviour policy, an evaluation policy and an update rule.

    Optional besides: `critique(obs, generator)` -> (action, Q estimate `[N]`, entropy bonus `[N]`) of the policy that
    the critic evaluates, for `eval/q_bias`; `stochastic = True` if that policy is not `act`; `exploration(step)` ->
    floats by tag, asked at rows and at checkpoints, so it changes nothing; `remarks()`, lines of the header, and
    `doubt(row)`, a line for the user if a row shows that something is wrong; `learn(batch, *noise)` and
    `behave(obs, *noise)`, the parts of `update` and of `explore` that can be captured as graphs. A graph holds numbers
    and flags of the agent for constants: hand over what changes, such as ε, as a tensor beside the noise.

    What has to be saved of it is named in `PARTS` (`persistence/checkpoint.py`), or given by `state_dict()` and taken
    back by `load_state_dict(state)`.
    """

    gamma: float
    batch_size: int

    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """Actions `[N]` or `[N, act]` to learn from; `first` `[N]` marks the first observations of episodes."""

    def act(self, obs: Tensor) -> Tensor:
        """The evaluation policy's actions."""

    def update(self, batch: Batch, step: int) -> tuple[Metrics, Tensor]:
        """Learn once; metrics by tag, and the TD error's size per sample `[B]`.

        Metrics are detached 0-dimensional tensors; a row holds their means since the last one.
        """


class Replay(Protocol):
    """Where transitions wait to be learned from.

    Optional besides: `cut()` when the environments are reset in the middle of their episodes; `grows = True` if tensors
    that `gather` reads are replaced on the way, which a graph cannot follow; `nbytes(spec, num_envs, **keys)`, static,
    the memory that it takes.
    """

    def add(
        self, obs: Tensor, action: Tensor, reward: Tensor, terminated: Tensor, truncated: Tensor, next_obs: Tensor
    ) -> None:
        """One transition of each environment, tensors `[N, ...]` to read; `next_obs` is the true successor."""

    def draw(self, batch_size: int, step: int) -> tuple[Tensor, ...]:
        """Everything random or changing that a batch needs, outside any graph."""

    def gather(self, *drawn: Tensor) -> Batch:
        """The batch that was drawn; tensors in, tensors out."""

    def prioritize(self, index: Tensor, td_error: Tensor) -> None:
        """Take note of the TD errors `[B]` of the sampled rows."""

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on exactly; only the rows of a `ring`, as in ours, are saved apart."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
