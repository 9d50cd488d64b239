"""Fine-tune image, video and vision-language models: one engine, one YAML grammar."""

__version__ = "0.1.0"
