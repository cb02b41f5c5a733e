"""A sweep's evidence in one file that can be published, and the check of such a file without training anything."""
