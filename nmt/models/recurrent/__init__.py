"""Recurrent loops over time with hand-written gradients: what training spends its time in.

A loop keeps what its backward pass needs in a few large buffers, walks back through them by hand, overwrites
activations with their gradients, and makes each weight's gradient in *one* product over all steps at the end. Autograd
would make it step by step, add it up in memory as often, and keep every intermediate result. `nmt.models.plain`
switches to autograd's own way; the tests hold both against each other.
"""
