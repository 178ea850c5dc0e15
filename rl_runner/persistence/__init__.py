"""What survives a kill: checkpoints, the session that owns a run directory, and how a run goes on from them."""
