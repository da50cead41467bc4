"""What several kinds of tests share: a model as its user drives it, and whether a converted net is that model."""
