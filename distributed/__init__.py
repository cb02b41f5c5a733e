"""Distribution strategies: the interface (`distributed.strategy`) and its implementations."""
