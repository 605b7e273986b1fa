"""Llama checkpoints in Meta's own format: what is in them, running them, converting them."""
