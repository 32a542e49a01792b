"""What the collector counts; names and labels are an interface of dashboards and alerts."""

from prometheus_client import CollectorRegistry, Counter, Gauge

REGISTRY = CollectorRegistry()
RECORDS = Counter(
    "kuznia_audit_records_total",
    "Records written, by how the request ended: yes or lost.",
    ("ended",),
    registry=REGISTRY,
)
TORN = Counter("kuznia_audit_torn_lines_total", "Lines that are none.", registry=REGISTRY)
LATE = Counter(
    "kuznia_audit_late_lines_total",
    "Lines about a request whose record was written without them.",
    registry=REGISTRY,
)
PENDING = Gauge("kuznia_audit_pending", "Requests without a record yet.", registry=REGISTRY)
UNSHIPPED = Gauge(
    "kuznia_audit_unshipped_segments", "Sealed segments that wait for the store.", registry=REGISTRY
)
OLDEST = Gauge(
    "kuznia_audit_oldest_unshipped_seconds",
    "Since when the oldest of them waits; 0 if none does.",
    registry=REGISTRY,
)
SHIPPED = Counter("kuznia_audit_segments_total", "Segments in the store.", registry=REGISTRY)
FAULTS = Counter(
    "kuznia_audit_faults_total",
    "What failed and is tried again: store, state, pseudonyms.",
    ("part",),
    registry=REGISTRY,
)
DISK_FREE = Gauge("kuznia_audit_disk_free_bytes", "Room where the state is.", registry=REGISTRY)
DISK_FULL = Gauge(
    "kuznia_audit_disk_full", "1 while nothing can be written for want of room.", registry=REGISTRY
)
SPOOL = Gauge("kuznia_audit_spool_unread_bytes", "Of the spool, not yet read.", registry=REGISTRY)
