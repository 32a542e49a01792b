"""The chain: authored with Hera, compiled to Argo YAML, run here by the local engine."""
