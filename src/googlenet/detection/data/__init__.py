"""Detection data sets: annotation formats, samples and batches."""
