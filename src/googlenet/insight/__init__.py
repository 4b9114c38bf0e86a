"""What a network has learned and what its parts do, as figures and pictures. Knows models, data and evaluation."""
