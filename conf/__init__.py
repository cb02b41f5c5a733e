"""Recipes only: the YAML groups that `nmt.config` composes. No code lives here."""
