"""Keeps the gateway's folder as the registry, soft configuration and revoked keys want it."""
