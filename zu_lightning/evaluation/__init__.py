"""What a model is asked before and after an edit."""
