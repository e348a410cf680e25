"""The pages of the book, one module per section or group of sections."""
