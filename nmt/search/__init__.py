"""Search: from a model's next-token distributions to the best hypotheses."""
