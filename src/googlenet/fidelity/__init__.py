"""Compare generated with real images: FID, KID, Inception Score, precision and recall, density and coverage.

`modes` is the table of how other tools prepare images, `images` reads sets of images, `networks` computes features,
`features` stores them, `statistics` and `metrics` are functions of features, and `compare` combines them.
"""
