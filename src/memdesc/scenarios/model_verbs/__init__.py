"""The verbs on the model: one function each, marked `@verb("name")`, by subject."""
