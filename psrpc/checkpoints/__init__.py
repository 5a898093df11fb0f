"""Checkpoints of a whole job: folders that `torch.distributed.checkpoint` can read too."""
