"""Did a model forget? An answer without a gold model: strangers are the yardstick."""
