"""Where tensors live: the mesh, its launcher and its checkpoints. Nothing else imports torch.distributed."""
