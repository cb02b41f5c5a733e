"""The strategy `ddp`: torch's DistributedDataParallel, the yardstick of the others."""
