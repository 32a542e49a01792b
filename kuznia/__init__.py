"""What every part of Kuźnia shares: contracts, store, manifest, tracking, errors."""

__version__ = "0.1.0"
