"""Training the verifier: its data, what a step sees of them, its losses and its calibration."""
