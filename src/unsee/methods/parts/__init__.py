"""What several methods are made of. A new method takes from here what it needs."""
