"""Links: how the processes of one run exchange tensors and control messages.

A link joins two processes that have proved a shared token to each other (`handshake`), and carries frames (`frames`)
both ways with one receiver and one writer thread a side. `tcp.TcpLink` goes between hosts, `shm.ShmLink` between
processes of one host; `listener` finds the right one. `faults` breaks them on purpose.
"""
