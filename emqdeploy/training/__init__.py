"""Model, data and recipe in, one multi-bit checkpoint out."""
