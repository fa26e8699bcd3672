pytest_plugins = ["guests"]
