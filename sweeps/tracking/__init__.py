"""MLflow as a view of run directories: mirrored while they are written, rebuilt at will, browsed; and its models."""
