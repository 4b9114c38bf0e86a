"""Tasks: what `fit` needs to know about a kind of problem."""
