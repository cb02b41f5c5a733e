"""Ring all-reduce: every node holds the whole model, and gradients are summed by neighbours in a ring."""
