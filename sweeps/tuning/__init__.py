"""Looking for a good configuration: spaces, samplers, trials, and the search that trains and stops them."""
