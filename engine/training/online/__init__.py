"""Online methods: they learn from replies that the model itself samples during training, and from their rewards."""
