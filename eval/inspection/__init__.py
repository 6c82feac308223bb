"""What does an expert do, and to which tokens? Attribution, exports of chosen experts, and objects for notebooks."""
