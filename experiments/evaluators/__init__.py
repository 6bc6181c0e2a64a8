"""What a trained policy is measured by."""
