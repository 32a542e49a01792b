"""The collector of the audit log: the gateway's spool becomes signed segments in the store."""
