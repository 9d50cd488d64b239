"""Extra inputs to a denoiser, one file each."""
