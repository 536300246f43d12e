"""Training on preferences: which of two replies is better, or whether one is good. One file a method."""
