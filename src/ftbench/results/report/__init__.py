"""The report: one HTML file of everything that was recorded, for people."""
