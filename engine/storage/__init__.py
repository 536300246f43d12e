"""What lies on disk and must survive a kill: folders that are complete or absent, and the cache of prepared data."""
