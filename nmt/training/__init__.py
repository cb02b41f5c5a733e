"""Training: workload, loop, checkpoints, schedules."""
