"""From the registry to what the gateway reads: Envoy's configuration, policies, limits."""
