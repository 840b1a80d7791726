"""The meta-learners, of which the rest of stage three knows the registry and the contract alone."""
