"""Replicated sweeps over configurations: plan, executors, aggregation, reports and tracking."""
