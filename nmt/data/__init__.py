"""From text to batches: corpus files, cleaning, tokenizers, prepared data, batching, built-in toy corpora."""
