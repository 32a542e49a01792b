"""What the configurer counts; names and labels are an interface of dashboards and alerts."""

from prometheus_client import CollectorRegistry, Counter, Gauge

REGISTRY = CollectorRegistry()
COMPILED = Gauge(
    "kuznia_gateway_configuration_timestamp_seconds",
    "When the configuration that is in force was written.",
    registry=REGISTRY,
)
RELEASES = Gauge("kuznia_gateway_releases", "Releases behind the gateway.", registry=REGISTRY)
REVOKED = Gauge("kuznia_gateway_revoked_keys", "Keys that are refused.", registry=REGISTRY)
REFUSED = Gauge(
    "kuznia_gateway_source_refused",
    "Whether what is there now is refused, and what was there before is in force.",
    ("source",),
    registry=REGISTRY,
)
READ = Gauge(
    "kuznia_gateway_source_read_timestamp_seconds",
    "When a source was last read whole: table, soft, revoked.",
    ("source",),
    registry=REGISTRY,
)
FAULTS = Counter(
    "kuznia_gateway_faults_total",
    "What failed: table, soft, revoked, envoy.",
    ("source",),
    registry=REGISTRY,
)
