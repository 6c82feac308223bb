"""Which facts does a masked model lose? Log-odds of the answer, by domain and relation."""
