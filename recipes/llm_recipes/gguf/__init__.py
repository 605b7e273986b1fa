"""Quantized models with llama.cpp: files, models, contexts, decoding, measuring."""
