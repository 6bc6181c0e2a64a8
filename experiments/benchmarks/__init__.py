"""Speed and learning of sagax beside baselines."""
