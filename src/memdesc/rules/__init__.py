"""Decisions, each written once: what type, and later what can move, fail, be dirtied."""
