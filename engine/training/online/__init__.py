"""Methods that learn from replies which the model itself writes while it trains, and from the rewards of these."""
