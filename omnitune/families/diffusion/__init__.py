"""What families on pipelines of diffusers share."""
