"""Storage in SQLite, in memory or in a file: the store, its lock, and recovery of damaged files."""
