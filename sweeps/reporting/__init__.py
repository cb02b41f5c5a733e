"""The report of a sweep: its table and picture, and the files they are written to."""
