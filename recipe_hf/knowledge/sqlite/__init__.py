"""Facts kept by SQLite, in memory or in a file: the truth about them, and what to do when the file is damaged."""
