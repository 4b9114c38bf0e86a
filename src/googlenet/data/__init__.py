"""Data loading: from files on disk to batches of tensors."""
