"""The networks of the family: layers, architectures as tables, initial weights, inference and integration."""
