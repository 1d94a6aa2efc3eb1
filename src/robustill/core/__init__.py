"""What every room stands on: errors, randomness, devices, several processes, files, checksums, progress, formatting."""
