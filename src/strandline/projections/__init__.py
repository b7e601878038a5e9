"""What projections and subscriptions are, not how they run: definitions, folds, documents."""
