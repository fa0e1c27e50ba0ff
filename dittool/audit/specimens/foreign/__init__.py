"""Other people's models, judged by what they do: nothing here knows a class or a parameter by its name."""
