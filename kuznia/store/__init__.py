"""Where everything large lies: one small interface over file://, s3:// and gs://."""

from kuznia.store.objects import Store, folder_of, open_store

__all__ = ["Store", "folder_of", "open_store"]
