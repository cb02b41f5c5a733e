"""Parameters in shards that go round a ring, data that stays: every node has 1/N of the model and of its optimizer."""
