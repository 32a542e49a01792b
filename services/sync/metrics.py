"""What the sync counts; names and labels are an interface of dashboards and alerts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
PASSES = Histogram(
    "kuznia_sync_pass_seconds",
    "How long a pass took.",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100),
    registry=REGISTRY,
)
LAST = Gauge(
    "kuznia_sync_last_success_timestamp_seconds",
    "When the last pass without a fault ended.",
    registry=REGISTRY,
)
MOVES = Counter(
    "kuznia_sync_moves_total",
    "Aliases that moved, by what came of it: commit, proposal, or none where git had it already.",
    ("tenant", "release", "outcome"),
    registry=REGISTRY,
)
WITHHELD = Gauge(
    "kuznia_sync_withheld",
    "Aliases on versions that must not be released: the log says why.",
    ("tenant", "release"),
    registry=REGISTRY,
)
MLFLOW_UP = Gauge(
    "kuznia_sync_mlflow_up", "Whether a tenant's MLflow answered.", ("tenant",), registry=REGISTRY
)
PROPOSALS = Gauge("kuznia_sync_open_proposals", "Branches that wait for people.", registry=REGISTRY)
CONFLICTS = Counter(
    "kuznia_sync_conflicts_total",
    "Passes begun again since somebody else pushed.",
    registry=REGISTRY,
)
FAULTS = Counter(
    "kuznia_sync_faults_total",
    "What failed: git, forge, mlflow, registry.",
    ("part",),
    registry=REGISTRY,
)
WEBHOOKS = Counter(
    "kuznia_sync_webhooks_total",
    "Webhooks that came: taken or refused.",
    ("outcome",),
    registry=REGISTRY,
)
