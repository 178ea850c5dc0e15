"""What rl_runner adds to Hydra."""
