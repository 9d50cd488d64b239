"""What a step keeps in memory, and what it computes again instead."""
