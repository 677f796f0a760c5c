from hypothesis import settings

# No deadline: how long an example takes says more about the machine than about us.
settings.register_profile("holdfast-metadata", deadline=None)
settings.load_profile("holdfast-metadata")
