"""The guard: a reverse proxy between the gateway and the models that looks at what passes."""
