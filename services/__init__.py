"""Long-running parts, one folder each."""
