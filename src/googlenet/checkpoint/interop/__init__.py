"""Convert weights from and to other libraries."""
