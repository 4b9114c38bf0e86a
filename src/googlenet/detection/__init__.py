"""Object detection: one-stage and two-stage heads on a feature pyramid, and R-CNN."""
