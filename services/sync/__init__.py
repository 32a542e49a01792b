"""The sync: MLflow's aliases become commits and pull requests on the registry in git."""
