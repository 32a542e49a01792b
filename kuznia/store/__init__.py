"""Where everything large lies: one small interface over file://, s3:// and gs://, and to read
only https:// and hf://."""

from kuznia.store.objects import CHUNK, Store, folder_of, open_store, root_and_key
from kuznia.store.web import Source, WebFolder, open_source

__all__ = [
    "CHUNK",
    "Source",
    "Store",
    "WebFolder",
    "folder_of",
    "open_source",
    "open_store",
    "root_and_key",
]
