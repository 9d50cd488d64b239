"""What a run learns from: sources, buckets, views of items, their order and the cache."""
