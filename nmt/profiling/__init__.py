"""What a configuration costs: parameters, arithmetic, memory and time."""
