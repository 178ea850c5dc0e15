"""A plugin: an agent whose constructor asks for each part by its name."""

from typing import Any

from rl_runner.algos.sac import SAC
from rl_runner.networks import NetworkFactory
from rl_runner.optim import OptimizerFactory


class Parted(SAC):
    """SAC that keeps what it was wired with; its actor and critics are the critics' network."""

    def __init__(
        self,
        *,
        spec: Any,
        network: NetworkFactory,
        actor_network: NetworkFactory,
        critic_network: NetworkFactory,
        optimizer: OptimizerFactory,
        actor_optimizer: OptimizerFactory,
        alpha_optimizer: OptimizerFactory,
        encoder: Any,
        value: Any,
        seed: int,
        device: Any,
        **keys: Any,
    ):
        self.wired = {
            "network": network,
            "actor_network": actor_network,
            "critic_network": critic_network,
            "optimizer": optimizer,
            "actor_optimizer": actor_optimizer,
            "alpha_optimizer": alpha_optimizer,
        }
        super().__init__(
            spec=spec, encoder=encoder, value=value, actor_network=critic_network, critic_network=critic_network,
            actor_optimizer=optimizer, critic_optimizer=optimizer, alpha_optimizer=optimizer, seed=seed, device=device,
            **keys,
        )  # fmt: skip
