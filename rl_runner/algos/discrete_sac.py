"""SAC for discrete actions (Christodoulou 2019): expectations over all actions instead of samples; `algo=sac` too."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from pydantic import FiniteFloat, PositiveFloat, PositiveInt
from torch import Tensor

from rl_runner import losses
from rl_runner.encoders import EncoderFactory, Shared
from rl_runner.envs import Spec
from rl_runner.networks import Net, NetworkFactory, QNetwork
from rl_runner.optim import OptimizerFactory, Targets, build, minimize
from rl_runner.replay import Batch
from rl_runner.seeding import generator
from rl_runner.values import Value, critic_report, soft_target
from rl_runner.wiring import Fraction, wire

TARGET_SHARE = 0.7  # of log A, the entropy of a policy that does not care
MOST_ALPHA = 100.0  # no temperature that rewards ask for


class DiscreteSAC:
    """Soft actor-critic with a categorical policy and an ensemble of critics that value every action.

    `alpha`: `auto` learns the temperature, starting at `initial_alpha`, so that the policy's entropy meets
    `target_entropy`, in nats (null: 0.7 log A); a number fixes it. `max_grad_norm`: clip actor and critic gradients.
    `critics`: how many, and `actor_reduce`: whether the actor climbs the lowest of them or their mean.
    `reset_at`: environment steps before whose updates networks, temperature and optimizers begin anew.
    """

    actions = "discrete"
    stochastic = True
    PARTS = (
        "actor",
        "critics",
        "target_critics",
        "log_alpha",
        "actor_optimizer",
        "critic_optimizer",
        "alpha_optimizer",
        "behaviour",
    )

    def __init__(
        self,
        *,
        spec: Spec,
        encoder: EncoderFactory,
        value: Callable[[], Value],
        actor_network: NetworkFactory,
        critic_network: NetworkFactory,
        actor_optimizer: OptimizerFactory,
        critic_optimizer: OptimizerFactory,
        alpha_optimizer: OptimizerFactory,
        seed: int,
        device: torch.device | str,
        gamma: Fraction,
        tau: Fraction,
        batch_size: PositiveInt,
        alpha: Literal["auto"] | PositiveFloat,
        initial_alpha: PositiveFloat,
        target_entropy: FiniteFloat | None,
        max_grad_norm: PositiveFloat | None,
        critics: PositiveInt = 2,
        actor_reduce: Literal["min", "mean"] = "min",
        reset_at: Sequence[PositiveInt] = (),
    ):
        assert spec.num_actions is not None
        self.gamma, self.batch_size, self.device = gamma, batch_size, device
        self.tau, self.max_grad_norm, self.actor_reduce = tau, max_grad_norm, actor_reduce
        self.num_actions, self.reset_at = spec.num_actions, reset_at
        self.behaviour = generator(seed, "behaviour")
        self.value = value()
        init = generator(seed, "init")
        features = wire(encoder, {"spec": spec, "generator": init})
        self.actor = CategoricalActor(spec, actor_network, Shared(features), init).to(device)
        self.critics = QNetwork(spec, critic_network, features, self.value.outputs, init, lead=(critics,)).to(device)
        self.target_critics = deepcopy(self.critics).requires_grad_(False)
        self.targets = Targets((self.target_critics, self.critics))
        self.actor_optimizer = build(actor_optimizer, self.actor.parameters())
        self.critic_optimizer = build(critic_optimizer, self.critics.parameters())
        self.learn_alpha = alpha == "auto"
        self.log_alpha = torch.tensor(float(initial_alpha if alpha == "auto" else alpha), device=device).log()
        self.log_alpha.requires_grad_(self.learn_alpha)
        undecayed = {"params": [self.log_alpha], "weight_decay": 0.0}  # decay would pull α towards 1
        self.alpha_optimizer = build(alpha_optimizer, [undecayed])
        share = TARGET_SHARE * math.log(spec.num_actions)
        self.target_entropy = float(share if target_entropy is None else target_entropy)
        self.doubted = False

    @torch.no_grad()
    def explore(self, obs: Tensor, step: int, first: Tensor) -> Tensor:
        """a ~ π(·|s), `[N]`."""
        return self.behave(obs, self.clocks(len(obs), self.behaviour)).cpu()

    def clocks(self, rows: int, stream: torch.Generator) -> Tensor:
        """Exponential numbers `[N, A]` for `sample`."""
        return torch.empty(rows, self.num_actions).exponential_(generator=stream)

    def sample(self, obs: Tensor, clocks: Tensor) -> Tensor:
        """Of clocks that run at rates π(a|s) the first to ring is that of a with probability π(a|s)."""
        return (self.actor(obs.to(self.device)) - clocks.to(self.device).log()).argmax(dim=-1)

    behave = sample

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """argmax_a π(a|s), `[N]`."""
        return self.actor(obs.to(self.device)).argmax(dim=-1).cpu()

    @torch.no_grad()
    def critique(self, obs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """a ~ π(·|s), the critics' mean Q(s, a) and the entropy bonus -α log π(a|s), each `[N]`."""
        obs = obs.to(self.device)
        action = self.sample(obs, self.clocks(len(obs), generator))
        q = self.value.mean(losses.select(self.critics(obs), action)).mean(dim=0)
        log_prob = self.actor(obs).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return action.cpu(), q.cpu(), (-self.log_alpha.exp() * log_prob).cpu()

    def remarks(self) -> list[str]:
        """What the header says besides."""
        most = math.log(self.num_actions)
        return [f"target entropy {self.target_entropy:.3g} nats, of {most:.3g} at most"] if self.learn_alpha else []

    def doubt(self, row: Mapping[str, float]) -> str | None:
        """What to type if the temperature has run away, once."""
        entropy, alpha = row.get("policy/entropy", math.inf), row.get("policy/alpha", 0.0)
        if self.doubted or not self.learn_alpha or alpha <= MOST_ALPHA or entropy >= self.target_entropy:
            return None
        self.doubted = True
        return (
            f"warning: policy/alpha is at {alpha:.3g} and the entropy, {entropy:.3g}, still below its target of "
            f"{self.target_entropy:.3g}: rewards count for next to nothing; set algo.target_entropy lower"
        )

    def update(self, batch: Batch, step: int) -> tuple[dict[str, Tensor], Tensor]:
        """One step of critics, actor, temperature and targets; metrics and |δ| `[B]`."""
        return self.learn(batch)

    def learn(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        alpha = self.log_alpha.detach().exp()

        with torch.no_grad():
            next_log_prob = self.actor(batch.next_obs)
            next_out = self.value.pessimistic(self.target_critics(batch.next_obs).movedim(-2, -4))  # the actions first
            target = soft_target(self.value, batch.reward, batch.discount, next_out, next_log_prob, alpha)

        out = losses.select(self.critics(batch.obs, training=True), batch.action)
        critic_norm = minimize(self.value.loss(out, target, batch.weight), self.critic_optimizer, self.max_grad_norm)

        with torch.no_grad():
            q = self.value.mean(self.critics(batch.obs))
        log_prob = self.actor(batch.obs, training=True)
        actor_loss = -losses.discrete_soft_value(q, log_prob, alpha, self.actor_reduce).mean(dim=-1).sum()
        actor_norm = minimize(actor_loss, self.actor_optimizer, self.max_grad_norm)

        log_prob = log_prob.detach()
        mean_log_prob = (log_prob.exp() * log_prob).sum(dim=-1)
        metrics, td_error = critic_report(self.value, out, target)
        metrics |= {
            "losses/actor_loss": actor_loss.detach(),
            "policy/entropy": -mean_log_prob.mean(),
            "policy/alpha": alpha,
            "grads/critic_norm": critic_norm,
            "grads/actor_norm": actor_norm,
        }

        if self.learn_alpha:
            alpha_loss = losses.alpha_loss(self.log_alpha, mean_log_prob, self.target_entropy)
            minimize(alpha_loss, self.alpha_optimizer)
            metrics["losses/alpha_loss"] = alpha_loss.detach()

        self.targets.polyak(self.tau)

        return metrics, td_error.mean(dim=0)


class CategoricalActor(Net):
    """log π(·|s) of every discrete action: `[B, *obs]` to `[B, A]`."""

    def __init__(self, spec: Spec, network: NetworkFactory, encoder: Any, generator: torch.Generator):
        assert spec.num_actions is not None
        super().__init__(spec, network, encoder, generator, spec.num_actions)

    def forward(self, obs: Tensor, training: bool = False) -> Tensor:
        return self.output(obs, training=training).log_softmax(dim=-1)
