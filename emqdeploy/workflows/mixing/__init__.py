"""What `emqdeploy mix` does: budgets, what they are counted in, and the children that meet them."""
