"""Three tests of a trained model and the verdict."""
