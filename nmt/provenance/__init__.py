"""What run directories say of how they came about: reading it, comparing two of them, doing one again."""
