"""The history of a git repository as events, its read models verified against git itself."""
