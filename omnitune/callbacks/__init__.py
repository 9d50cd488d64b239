"""What happens around the steps: log, averages, samples."""
