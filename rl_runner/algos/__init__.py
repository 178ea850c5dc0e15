"""One file per paper; each class is a behaviour policy, an evaluation policy and an update rule."""
