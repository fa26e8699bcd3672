from hypothesis import settings

pytest_plugins = ["guests"]

# A busy machine makes a slow example, not a wrong one.
settings.register_profile("memdesc", deadline=None)
settings.load_profile("memdesc")
