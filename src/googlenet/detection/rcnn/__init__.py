"""R-CNN with an Inception classifier and MultiBox proposals, as in "Going Deeper with Convolutions", section 8."""
