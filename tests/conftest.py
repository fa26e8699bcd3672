from hypothesis import HealthCheck, settings

pytest_plugins = ["guests"]

# A busy machine, or one that compiles first, makes a slow example, not a wrong one.
settings.register_profile("memdesc", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memdesc")
