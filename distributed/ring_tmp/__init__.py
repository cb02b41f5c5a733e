"""RingTMP: a model's stages lie around a ring of nodes; activations and gradients go to neighbours, weights stay."""
