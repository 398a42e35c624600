"""What a run changed, as matrices: spectra, the rank that was needed, and intruder dimensions."""
