"""Where everything large lies: one small interface over file://, s3:// and gs://."""

from kuznia.store.objects import Store, open_store

__all__ = ["Store", "open_store"]
