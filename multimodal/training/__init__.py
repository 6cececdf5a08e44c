"""Training: state, optimizer, sharding, step, checkpoints, loop."""
