"""Translation models as pure tensor code: masks and lengths are handed in, nothing changes during a call.

Inside the models tensors are time-major, `[time, batch, units]`; what decoding sees has the batch first.
"""
