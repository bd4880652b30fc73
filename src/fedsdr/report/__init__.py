"""What users look at: one page, its curves, and pictures."""
