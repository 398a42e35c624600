"""What several methods are made of: each file in the folder above is one method."""
