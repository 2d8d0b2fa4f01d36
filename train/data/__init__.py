"""Images: read, written, kept in memory, and degraded by noise."""
