"""The steps of the chain: one file a step, plain functions that know nothing of Argo."""
