"""Executors: how a sweep's work items are spread over processes. Reached by name through `nmt.registry`."""
