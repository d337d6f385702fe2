"""What a person types: arguments in, tables out."""
