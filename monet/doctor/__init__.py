"""What `monet doctor` looks at: versions, devices, optional parts, and a self-test of this installation."""
