"""Vision-language models that transformers loads."""
