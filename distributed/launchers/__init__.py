"""Who starts the processes of a run; see `distributed.agent`."""
