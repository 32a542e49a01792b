"""Benchmarks against what a user would pick instead; each a script that prints one table."""
