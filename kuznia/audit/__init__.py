"""The audit log: streams of chained records, sealed into signed segments.

    <store>/audit/<tenant>/<writer>/<first seq, 12 digits>.jsonl        a segment
    <store>/audit/<tenant>/<writer>/<first seq, 12 digits>.checkpoint   its signed checkpoint

Nothing is ever overwritten. docs/howto/read-the-audit-log.md tells how to read and check it.
"""
