"""Hugging Face checkpoints in and out, without torch or transformers: config, safetensors, tokenizer files."""
