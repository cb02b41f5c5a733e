"""The parameter server: shards of the parameters on servers, gradients from workers, membership by a coordinator."""
