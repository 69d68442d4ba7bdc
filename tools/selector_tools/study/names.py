"""What the command line offers; light, for it is read before anything heavy is."""

PROFILE_NAMES = ("headline", "cpu", "gpu", "full", "tuning", "gpu_tuning")
