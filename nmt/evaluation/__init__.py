"""Evaluation: decoding a whole text, scoring it, and teacher-forced perplexity beside it."""
