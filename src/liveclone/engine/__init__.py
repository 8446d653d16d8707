"""What users ask for, one operation a file, as named steps with their undo. The only place that holds drivers and store."""
