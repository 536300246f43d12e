"""The GLM family in the layout of its original repositories, which transformers 5 does not read by itself."""
