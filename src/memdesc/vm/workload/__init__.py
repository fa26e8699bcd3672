"""What runs inside a recording guest: memory of every kind, planted by several processes."""
