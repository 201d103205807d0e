"""Search among keys held in memory: exact, or by codes where they are many."""
